"""The command line makes the config, and says clearly what it cannot take."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from experiments import flags as shared
from nucseg_jax.config import Config, ConfigError, DataConfig, ModelConfig, TrainConfig

ROOT = pathlib.Path(shared.__file__).parent.parent
SECTIONS = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}


@pytest.fixture
def parse(absl_flags):
    """Makes a config from a command line."""
    shared.define_settings(*SECTIONS)

    def parse(*arguments):
        absl_flags(["program", *arguments])
        return shared.config_from_flags()

    return parse


def test_no_flags_give_the_defaults(parse):
    assert parse() == Config()


@pytest.mark.parametrize("section", SECTIONS.values())
def test_every_setting_is_a_flag_with_its_meaning(parse, absl_flags, section):
    parse()
    for field in dataclasses.fields(section):
        assert field.metadata["help"] in absl_flags[field.name].help


CHANGED = Config(
    data=DataConfig(
        data_dir="/some/folder",
        truth="masks",
        split="other_split",
        val_fraction=0.25,
        split_seed=3,
        framing="crop",
        size=96,
        clahe_clip_limit=0.0,
        normalization="stretch",
        augmentation="none",
        zoom=2.0,
        balance_by="modality",
        targets=("foreground", "boundary"),
        pixel_size=0.25,
        cache_mib=16,
    ),
    model=ModelConfig(features=(4, 8, 12), dtype="bfloat16", batch_norm_momentum=0.9),
    train=TrainConfig(
        seed=5,
        init="runs/first",
        learn_val=True,
        num_epochs=7,
        steps_per_epoch=0,
        batch_size=3,
        supervision="per_head",
        learning_rate=3e-4,
        warmup_epochs=0.5,
        decay="cosine",
        decay_epochs=(2.0, 4.5),
        clip_norm=1.0,
        ema_decay=0.99,
        num_workers=2,
        max_skipped=3,
    ),
)


def as_arguments(config):
    for section in SECTIONS:
        for name, value in dataclasses.asdict(getattr(config, section)).items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            yield f"--{name}={text}"


def test_every_setting_can_be_given(parse):
    default = list(as_arguments(Config()))
    given = list(as_arguments(CHANGED))
    same = [a for a, b in zip(default, given, strict=True) if a == b]
    assert not same
    assert parse(*given) == CHANGED


def test_relative_lists_of_ids_are_stored_as_absolute_ones(
    parse, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    split = parse("--split=a.txt, b.txt").data.split
    assert split == f"{tmp_path / 'a.txt'},{tmp_path / 'b.txt'}"
    assert parse("--split=my split").data.split == "my split"


def test_lists_of_ids_named_for_scoring_are_those_of_training(
    parse, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    trained = parse("--data_dir=.", "--split=a.txt, b.txt").data
    assert shared.choose_data(trained) == trained


def test_the_run_to_begin_with_is_found_from_anywhere(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "checkpoints").mkdir(parents=True)
    (tmp_path / "small").mkdir()  # Of results.
    assert parse("--init=runs").train.init == str(tmp_path / "runs")
    assert parse("--init=small").train.init == "small"
    assert parse("--init=").train.init == ""


def test_a_tilde_is_the_home_folder(parse, absl_flags, monkeypatch):
    """A folder called ~ would be made otherwise."""
    monkeypatch.setenv("HOME", "/home/ada")
    shared.output("Folder.")
    config = parse("--data_dir=~/images", "--output=~/results")
    assert config.data.data_dir == "/home/ada/images"
    assert absl_flags.output == "/home/ada/results"


def test_a_path_from_a_variable_that_is_not_set_is_refused(absl_flags):
    shared.output("Folder.")
    with pytest.raises(flags.IllegalFlagValueError, match="--output=: is empty"):
        absl_flags(["program", "--output="])


def test_data_from_a_variable_that_is_not_set_are_refused(parse):
    """Or the sample would be learned from."""
    with pytest.raises(ConfigError, match="data_dir is empty"):
        parse("--data_dir=")


def test_a_relative_data_dir_is_stored_as_an_absolute_one(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("--data_dir=some/folder").data.data_dir == str(
        tmp_path / "some" / "folder"
    )


def test_a_flagfile_overrides_the_defaults_and_the_command_line_both(parse, tmp_path):
    flagfile = tmp_path / "some.flags"
    flagfile.write_text("# A reason.\n--features=4,8\n--batch_size=3\n--seed=7\n")
    config = parse(f"--flagfile={flagfile}", "--seed=9")
    assert config.model.features == (4, 8)
    assert config.train == TrainConfig(batch_size=3, seed=9)
    assert config.data == DataConfig()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments" / "flagfiles").glob("*.flags")), ids=str
)
def test_flagfiles_list_only_what_differs(parse, path):
    config = parse(f"--flagfile={path}")
    settings = [
        line.removeprefix("--").split("=")[0]
        for line in path.read_text().splitlines()
        if line.startswith("--")
    ]
    differing = [
        field.name
        for name, section in SECTIONS.items()
        for field in dataclasses.fields(section)
        if getattr(getattr(config, name), field.name) != field.default
    ]
    assert sorted(settings) == sorted(differing)


@pytest.mark.parametrize(
    ("recipe", "result"),
    [("literature", "literature_resized"), ("original", "original_original")],
)
def test_flagfiles_are_the_recipes_of_measured_results(parse, recipe, result):
    """But for the precision, and what changes nothing that is learned."""
    results = ROOT / "experiments" / "results" / f"accuracy_{result}.json"
    measured = Config.from_dict(json.loads(results.read_text())["config"])
    config = parse(
        f"--flagfile={ROOT}/experiments/flagfiles/{recipe}.flags",
        f"--dtype={measured.model.dtype}",
        f"--num_workers={measured.train.num_workers}",
    )
    for section in SECTIONS:
        assert getattr(config, section) == getattr(measured, section)


@pytest.mark.parametrize(
    ("argument", "section", "name", "value"),
    [
        ("--features=8,16", "model", "features", (8, 16)),
        ("--features=8, 16, 32", "model", "features", (8, 16, 32)),
        ("--decay_epochs=3,5.5", "train", "decay_epochs", (3.0, 5.5)),
        ("--decay_epochs=", "train", "decay_epochs", ()),
        ("--targets=foreground", "data", "targets", ("foreground",)),
    ],
)
def test_lists_are_parsed_to_their_kind(parse, argument, section, name, value):
    result = getattr(getattr(parse(argument), section), name)
    assert result == value
    assert [type(item) for item in result] == [type(item) for item in value]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--features=8,many", "features is '8,many'; give ints and commas"),
        ("--features=8,1.5", "features is '8,1.5'; give ints and commas"),
        ("--features=8", "features is .*; give at least two"),
        ("--features=", "features is .*; give at least two"),
        ("--decay_epochs=six", "decay_epochs is 'six'; give floats and commas"),
        ("--targets=nucleolus", "targets is .*; expected foreground, then any of"),
        ("--size=8", "size is 8; it must be at least 16"),
        ("--batch_size=0", "batch_size is 0; it must be positive"),
        ("--val_fraction=1", "val_fraction is 1.0; it must lie between"),
        ("--ema_decay=1", "ema_decay is 1.0"),
    ],
)
def test_a_value_that_cannot_work_is_named(parse, argument, message):
    with pytest.raises(ConfigError, match=message):
        parse(argument)


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("--batch_size=few", flags.IllegalFlagValueError, "batch_size=few"),
        ("--learning_rate=low", flags.IllegalFlagValueError, "learning_rate=low"),
        ("--framing=tile", flags.IllegalFlagValueError, "<resize|crop>"),
        ("--batchsize=3", flags.UnrecognizedFlagError, "batchsize"),
    ],
)
def test_a_flag_of_another_kind_or_name_is_refused(parse, argument, error, message):
    with pytest.raises(error) as caught:
        parse(argument)
    assert message in str(caught.value)


def test_given_holds_what_the_command_line_sets(parse, tmp_path):
    flagfile = tmp_path / "some.flags"
    flagfile.write_text("--truth=masks\n")
    parse("--split=column", "--features=4,8", f"--flagfile={flagfile}")
    names = ["data_dir", "truth", "split", "features", "size"]
    expected = {"truth": "masks", "split": "column", "features": (4, 8)}
    assert shared.given(names) == expected


def test_no_data_dir_is_the_sample_and_another_is_kept():
    sample = pathlib.Path(shared.resolve_data(DataConfig(size=64)).data_dir)
    assert (sample / "index.csv").is_file()
    assert shared.resolve_data(DataConfig(size=64)).size == 64
    named = DataConfig(data_dir="some/folder")
    assert shared.resolve_data(named) == named


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), (".25", 0.25), ("1e-3", 1e-3)]
)
def test_a_threshold_is_a_probability(text, value):
    assert shared.parse_threshold(text) == value


@pytest.mark.parametrize("text", ["", "half", "0", "1", "-0.5", "1.5", "nan", "50%"])
def test_a_threshold_that_is_none_is_named(text):
    with pytest.raises(ValueError, match=f"threshold is {text!r}; give a number"):
        shared.parse_threshold(text)


PROGRAMS = {
    "prepare": {"corrected", "input", "output"},
    "predict": {"checkpoint", "input", "output", "mode", "threshold", "save", "tta"}
    | {"scale", "pixel_size", "channel", "axes", "max_pixels", "on_error"}
    | {"num_shards", "shard_index", "tile", "dtype"},
    "merge": {"output"},
    "evaluate": {"checkpoint", "subset", "output", "mode", "threshold", "tta"}
    | {"score_size", "data_dir", "truth", "split", "val_fraction", "split_seed"},
    "train": {"workdir", "coordinator", "num_processes", "process_id"}
    | {field.name for kind in SECTIONS.values() for field in dataclasses.fields(kind)},
}
REQUIRED = ("checkpoint", "input", "output", "workdir")


@pytest.mark.parametrize("names", [list(PROGRAMS), list(PROGRAMS)[::-1]])
def test_programs_share_flags_and_show_their_own(load_program, absl_flags, names):
    for name in names:
        arguments = [f"--{f}=some" for f in REQUIRED if f in PROGRAMS[name]]
        module = load_program(name, *arguments)
        shown = absl_flags.get_key_flags_for_module(module.__name__)
        assert {flag.name for flag in shown} == PROGRAMS[name]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_asks_for_what_it_needs(load_program, name):
    with pytest.raises(flags.IllegalFlagValueError, match="must have a value"):
        load_program(name)


def run(*arguments, **environment):
    command = [sys.executable, "-m", "experiments.prepare", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={"PATH": ""} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_user_error_is_one_line_and_status_1(tmp_path):
    output = f"--output={tmp_path / 'out'}"
    result = run("--input=no_such.zip", output)
    message = "error: no_such.zip: is neither a folder nor a zip file\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", message)
    result = run("--input=no_such.zip", output, NUCSEG_TRACEBACK="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_stray_argument_is_refused(tmp_path):
    result = run("--input=a.zip", f"--output={tmp_path / 'out'}", "stray")
    assert result.returncode == 1
    assert "unexpected argument: stray" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_a_slurm_array_job_names_the_shard(load_program, absl_flags, monkeypatch):
    """Array jobs need not begin at zero."""
    for name, value in (("ID", "7"), ("COUNT", "4"), ("MIN", "5")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    load_program("predict", "--checkpoint=c", "--input=i", "--output=o")
    assert (absl_flags.num_shards, absl_flags.shard_index) == (4, 2)
