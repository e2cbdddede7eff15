"""What a user sees while images are segmented."""

import dataclasses
import itertools
import json
import pathlib

import pytest
import tqdm
from absl import flags

import nucseg_jax
from experiments import output_folder
from experiments.prediction import (
    choose_checkpoint,
    find_settings,
    read_network,
    read_options,
    tell_foreign,
    tell_retired,
)
from nucseg_jax import pretrained
from nucseg_jax.checkpoints import read_digest
from nucseg_jax.inference.block_tasks import Network
from nucseg_jax.inference.jobs import Job
from nucseg_jax.inference.record import Outcome
from nucseg_jax.inference.segmenter import load_segmenter
from nucseg_jax.inference.streams import PlaneInfo
from nucseg_jax.training.stopping import Stopped

INFO = PlaneInfo("sub/a.tif", pathlib.Path("a.tif"), 9, 9, ("0",), ("0",), None, ("x",))


@pytest.fixture
def show_tiles(load_program):
    return load_program("predict", "--input=in", "--output=out").show_tiles


@pytest.fixture
def slow(monkeypatch):
    """Lets two seconds pass whenever the bar looks at the clock."""
    clock = itertools.count(step=2)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))


def shown(capsys):
    return capsys.readouterr().err.split("\r")


def test_the_bar_counts_the_tiles_of_an_image(show_tiles, slow, capsys):
    with show_tiles(INFO) as tell_tiles:
        tell_tiles(0, 3)
        assert "sub/a.tif:   0%" in shown(capsys)[-1]
        for done in (1, 2, 3):
            tell_tiles(done, 3)
            assert f"{done}/3 [" in shown(capsys)[-1]
    *_, cleared, last = shown(capsys)
    assert not cleared.strip() and not last


def test_the_bar_of_files_counts_the_images_in_them(load_program, slow, capsys):
    program = load_program("predict", "--input=in", "--output=out")
    with tqdm.tqdm(total=1) as bar:
        watch = program.counting(bar)
        for count in (1, 2, 3):
            with watch(INFO) as tell_tiles:
                tell_tiles(1, 1)
            assert f"images={count}]" in shown(capsys)[-1]


@pytest.mark.parametrize("is_slow", [False, True])
def test_an_image_of_one_tile_has_no_bar(show_tiles, request, capsys, is_slow):
    if is_slow:
        request.getfixturevalue("slow")
    with show_tiles(INFO) as tell_tiles:
        tell_tiles(0, 1)
        tell_tiles(1, 1)
    assert shown(capsys) == [""]


def test_an_image_that_is_soon_done_has_no_bar(show_tiles, capsys):
    with show_tiles(INFO) as tell_tiles:
        for done in range(4):
            tell_tiles(done, 3)
    assert shown(capsys) == [""]


def test_what_the_flags_say_of_the_network_reaches_a_cluster_too(load_program):
    load_program("predict_dask", "--input=in", "--output=out", "--dtype=bfloat16")
    network = read_network("small")
    digest = read_digest(pretrained.resolve("small"))
    expected = Network("small", digest, dtype="bfloat16")
    assert Network.find(**network) == expected
    settings = find_settings(network, read_options(["labels"]))
    assert settings["dtype"] == "bfloat16"
    # Results of a network and of its successor in the same folder are not mixed.
    assert digest.startswith(settings["network"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"mode": "fast", "head": 3, "dtype": "float32", "tta": 1, "scale": None}),
        (["--mode=accurate"], {"mode": "accurate", "head": "all"}),
        (["--threshold=0.3"], {"threshold": 0.3, "min_probability": 0.0}),
        (["--scale=2", "--tta=8"], {"scale": 2.0, "tta": 8}),
        (["--channel=DAPI"], {"channel": "DAPI"}),
    ],
)
def test_settings_tell_what_was_tuned_or_asked_for(load_program, arguments, expected):
    load_program("predict", "--input=in", "--output=out", *arguments)
    network = read_network("small")
    settings = find_settings(network, read_options(["labels"]))
    assert settings | expected == settings
    decoding = dataclasses.asdict(load_segmenter(**network).decoding)
    assert settings | decoding == settings
    assert settings["version"] == nucseg_jax.__version__
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize(
    "argument",
    ["--scale=-1", "--scale=nan", "--scale=1e6", "--pixel_size=-1", "--pixel_size=nan"],
)
def test_a_number_that_cannot_be_is_refused_before_any_image(load_program, argument):
    load_program("predict", "--input=in", "--output=out", argument)
    name = argument[2:].partition("=")[0]
    with pytest.raises(ValueError, match=f"{name} is .*; it must"):
        read_options(["labels"])


def test_images_of_kinds_that_are_not_read_are_counted(capsys):
    tell_foreign([])
    assert capsys.readouterr().out == ""
    tell_foreign([pathlib.PurePath(p) for p in ("a.czi", "b.nd2", "c/d.CZI")])
    assert "not read: 2 .czi, 1 .nd2; save" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tile", "max_pixels", "num_shards"])
def test_a_negative_number_is_refused(load_program, name):
    with pytest.raises(flags.IllegalFlagValueError, match=f"--{name}=-64"):
        load_program("predict", "--input=in", "--output=out", f"--{name}=-64")


def test_a_network_is_chosen_and_told_where_none_is_named(load_program, capsys):
    load_program("predict", "--input=in", "--output=out")
    assert choose_checkpoint(lambda: "base") == "base"
    assert capsys.readouterr().out == "network: base, which comes with the project\n"


def test_a_named_network_is_taken(load_program, capsys):
    load_program("predict", "--input=in", "--output=out", "--checkpoint=runs/mine")
    assert choose_checkpoint(lambda: "base") == "runs/mine"
    assert not capsys.readouterr().out


def test_failures_of_other_numbers_of_shards_are_forgotten(tmp_path):
    job = Job(pathlib.Path("a"), pathlib.PurePath("a"), pathlib.PurePath("a"))
    failed = [Outcome(job, error="damaged")]
    for shards in ((8, 3), (8, 5), (2, 0)):
        output_folder.write_failures(tmp_path, failed, *shards)
    assert [path.name for path in tmp_path.iterdir()] == ["failed_0_of_2.csv"]
    assert output_folder.find_missing_shards(tmp_path) == ["1 of 2"]
    output_folder.write_failures(tmp_path, failed, 2, 1)
    assert len(list(output_folder.read_failures(tmp_path))) == 2
    assert output_folder.find_missing_shards(tmp_path) == []
    output_folder.write_failures(tmp_path, [], 1, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("task", "index"), [("3", 0), ("5", 1), ("11", 4)])
def test_a_slurm_array_with_steps_gives_each_task_a_shard(
    load_program, monkeypatch, task, index
):
    """As `sbatch --array=3-11:2` sets them."""
    names = ("COUNT", "MIN", "MAX", "STEP", "ID")
    for name, value in zip(names, ("5", "3", "11", "2", task), strict=True):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    load_program("predict", "--input=in", "--output=out")
    assert (flags.FLAGS.num_shards, flags.FLAGS.shard_index) == (5, index)


def test_ctrl_c_ends_it_in_one_line(load_program, monkeypatch, tmp_path):
    program = load_program("predict", "--input=in", "--output=out")

    def interrupted(*_, **__):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(program, "segment_files", interrupted)
    with pytest.raises(Stopped, match="stopped by SIGINT") as stopped:
        program.segment_all([], None, tmp_path, None)
    assert stopped.value.exit_code == 130


def test_results_that_were_left_out_are_told(capsys):
    tell_retired(0)
    assert not capsys.readouterr().out
    tell_retired(2)
    assert capsys.readouterr().out.startswith("2 earlier result(s)")
