"""The programs as a user starts them: train, resume, evaluate, predict."""

import csv
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from nucseg_jax.data.images import read_image
from tests.helpers import disc_image, write_disc_dataset

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = [
    "--features=4,6,8",
    "--size=32",
    "--batch_size=4",
    "--steps_per_epoch=8",
    "--learning_rate=1e-2",
    "--decay=constant",
    "--augmentation=flips",
    "--batch_norm_momentum=0.8",
]


def run(program, *arguments):
    command = [sys.executable, "-m", f"experiments.{program}", *map(str, arguments)]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


def succeed(program, *arguments):
    result = run(program, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def history(workdir):
    with open(workdir / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three epochs, stopped after two and started again."""
    folder = tmp_path_factory.mktemp("run")
    write_disc_dataset(folder / "data", num_images=8, side=40)
    arguments = [f"--workdir={folder / 'run'}", f"--data_dir={folder / 'data'}"]
    first = succeed("train", *arguments, *SETTINGS, "--num_epochs=2")
    second = succeed("train", *arguments, *SETTINGS, "--num_epochs=3")
    return folder, first, second


def test_training_names_the_device_and_learns(trained):
    folder, first, _ = trained
    assert re.search(r"device: 1 x CPU, \d+ cores \(jax \d", first)
    assert "(6 train, 2 val; drawn at random with --split_seed=0)" in first
    assert re.search("epoch 2 is done.* the best on validation, epoch [12]\n", first)
    rows = history(folder / "run")
    assert float(rows[-1]["train_loss"]) < 0.7 * float(rows[0]["train_loss"])
    assert float(rows[-1]["val_auc"]) > 0.8


def test_training_goes_on_where_it_stopped(trained):
    folder, first, second = trained
    assert "going on" not in first
    assert "after epoch 2" in second
    assert [float(row["epoch"]) for row in history(folder / "run")] == [1, 2, 3]


def test_what_cannot_be_learned_from_is_named(trained, tmp_path):
    folder, _, _ = trained
    result = run(
        "train",
        f"--workdir={tmp_path / 'run'}",
        f"--data_dir={folder / 'data'}",
        *SETTINGS,
        "--learning_rate=1e30",
        "--max_skipped=2",
        "--num_epochs=1",
    )
    assert result.returncode == 1
    told = result.stderr.splitlines()[-1]
    assert "not finite in 3 batches in a row" in told
    files = told.partition("The last batch: ")[2].split(", ")
    assert len(files) == 4 and all(pathlib.Path(name).is_file() for name in files)


def test_other_settings_are_refused_on_the_same_workdir(trained):
    folder, _, _ = trained
    result = run(
        "train",
        f"--workdir={folder / 'run'}",
        f"--data_dir={folder / 'data'}",
        *SETTINGS,
        "--seed=5",
    )
    assert result.returncode == 1
    assert "seed was 0, is 5" in result.stderr


def test_training_begins_with_another_networks_parameters(trained, tmp_path):
    """A step too small to see: the network is the one that it began with."""
    folder, _, _ = trained
    before = history(folder / "run")
    best = max(before, key=lambda row: float(row["val_best_iou"]))
    told = succeed(
        "train",
        f"--workdir={tmp_path / 'run'}",
        f"--data_dir={folder / 'data'}",
        f"--init={folder / 'run'}",
        "--learning_rate=1e-9",
        "--batch_norm_momentum=0.999999",
        "--batch_size=4",
        "--steps_per_epoch=1",
        "--num_epochs=1",
    )
    assert "beginning with the parameters of" in told
    (row,) = history(tmp_path / "run")
    assert float(row["val_iou"]) == pytest.approx(float(best["val_iou"]), abs=1e-3)
    # What the command line leaves open is as it was there.
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["features"] == [4, 6, 8]
    assert config["model"]["batch_norm_momentum"] == 0.999999
    assert config["data"]["size"] == 32 and config["data"]["augmentation"] == "flips"


def test_a_run_needs_the_network_that_it_began_with_no_more(trained, tmp_path):
    folder, _, _ = trained
    shutil.copytree(folder / "run", tmp_path / "first")
    arguments = [
        f"--workdir={tmp_path / 'run'}",
        f"--data_dir={folder / 'data'}",
        f"--init={tmp_path / 'first'}",
        "--batch_size=4",
        "--steps_per_epoch=1",
        "--decay=constant",
    ]
    succeed("train", *arguments, "--num_epochs=1")
    shutil.rmtree(tmp_path / "first")
    assert "after epoch 1" in succeed("train", *arguments, "--num_epochs=2")
    starts = json.loads((tmp_path / "run" / "starts.json").read_text())
    assert len(starts) == 2 and starts[0]["data"] == starts[1]["data"]
    assert set(starts[0]["versions"]) >= {"jax", "flax", "optax"}


def test_data_that_changed_are_noticed(trained):
    """Training does not go on with them, and evaluation warns."""
    folder, _, _ = trained
    evaluate = ["evaluate", f"--checkpoint={folder / 'run'}"]
    assert "WARNING" not in succeed(*evaluate)
    images = {p: p.read_bytes() for p in (folder / "data" / "images").iterdir()}
    try:
        for path in images:
            image = np.asarray(PIL.Image.open(path))
            PIL.Image.fromarray(255 - image).save(path)
        workdir, data = folder / "run", folder / "data"
        train = ["train", f"--workdir={workdir}", f"--data_dir={data}", *SETTINGS]
        result = run(*train, "--num_epochs=4")
        assert result.returncode == 1
        assert "train images or their truth are no longer those" in result.stderr
        for again in ([], [f"--data_dir={data}"]):
            told = succeed(*evaluate, *again)
            assert "truth of val have changed since training" in told
    finally:
        for path, content in images.items():
            path.write_bytes(content)


@pytest.mark.parametrize(
    "setting", ["--features=4,6,9", "--targets=foreground,boundary"]
)
def test_a_network_of_another_shape_is_no_beginning(trained, tmp_path, setting):
    folder, _, _ = trained
    arguments = [f"--data_dir={folder / 'data'}", f"--init={folder / 'run'}", setting]
    result = run("train", f"--workdir={tmp_path / 'run'}", *arguments)
    assert result.returncode == 1
    assert "has features (4, 6, 8) and targets ('foreground',)" in result.stderr


def test_a_folder_is_segmented_without_any_training(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    sample = ROOT / "experiments/sample_data/images/514ccfc7.png"
    (source / "a.png").write_bytes(sample.read_bytes())
    told = succeed("predict", f"--input={source}", f"--output={tmp_path / 'out'}")
    assert "network: small, which comes with the project" in told
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert int(row["count"]) > 10


def test_run_folder_holds_what_the_readme_says(trained):
    folder, _, _ = trained
    names = {path.name for path in (folder / "run").iterdir()}
    wanted = {
        "augmented.png",
        "checkpoints",
        "config.json",
        "curves.png",
        "history.csv",
        "tensorboard",
    }
    assert wanted <= names
    with PIL.Image.open(folder / "run" / "curves.png") as picture:
        assert np.asarray(picture).std() > 10


def test_evaluation_needs_nothing_but_the_checkpoint(trained):
    folder, _, _ = trained
    table = succeed("evaluate", f"--checkpoint={folder / 'run'}")
    output = folder / "run" / "evaluation_val"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["num_images"] == 2
    assert 0.25 < metrics["pooled"]["iou"] <= 1
    assert f"{metrics['pooled']['iou']:.4f}" in table
    assert (output / "predictions.png").stat().st_size > 10_000


def test_an_evaluation_of_nothing_leaves_nothing(tmp_path):
    for program, *named in (
        ("evaluate", f"--output={tmp_path / 'out'}"),
        ("heads", "--name=x", f"--results={tmp_path / 'out'}"),
    ):
        result = run(program, f"--checkpoint={tmp_path / 'missing'}", *named)
        assert result.returncode == 1 and "missing" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_evaluation_of_another_subset_with_a_tuned_threshold(trained):
    folder, _, _ = trained
    run_folder = f"--checkpoint={folder / 'run'}"
    succeed("evaluate", run_folder, "--subset=train", "--threshold=tuned")
    path = folder / "run" / "evaluation_train" / "metrics.json"
    metrics = json.loads(path.read_text())
    assert metrics["num_images"] == 6 and metrics["threshold"] != 0.5


def test_prediction_of_a_folder_with_a_bad_file(trained, tmp_path):
    folder, _, _ = trained
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (33, 50), "sub/b.tif": (64, 20)}.items():
        pixels = rng.integers(0, 255, shape, np.uint8)
        PIL.Image.fromarray(pixels).save(source / name)
    (source / "broken.png").write_bytes(b"no picture")
    result = run(
        "predict",
        f"--checkpoint={folder / 'run'}",
        f"--input={source}",
        f"--output={tmp_path / 'out'}",
    )
    assert result.returncode == 1
    assert "2 of 3 files: 2 images" in result.stdout
    assert "broken.png" in result.stderr
    out = tmp_path / "out"
    assert (out / "overlays" / "sub" / "b.png").is_file()
    for kind, name in (("masks", "a.png"), ("labels", "a.tif")):
        assert read_image(out / kind / name).shape == (33, 50, 3)
        name = pathlib.Path("sub") / f"b{pathlib.Path(name).suffix}"
        assert read_image(out / kind / name).shape == (64, 20, 3)
    assert [row["image"] for row in table(out / "summary.csv")] == [
        "a.png",
        "sub/b.tif",
    ]
    (failure,) = table(out / "failed.csv")
    assert failure["image"] == "broken.png" and "PNG" in failure["error"]
    assert "broken.png" in (out / "report.html").read_text(encoding="utf-8")


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def sources(tmp_path):
    """Five images."""
    source = tmp_path / "in"
    source.mkdir()
    for k in range(5):
        PIL.Image.fromarray(disc_image(40, seed=k)[0]).save(source / f"{k}.png")
    return source


def predict(trained, source, output, *arguments):
    folder, _, _ = trained
    run_folder, given = f"--checkpoint={folder / 'run'}", f"--input={source}"
    return run("predict", run_folder, given, f"--output={output}", *arguments)


def test_shards_and_merge_give_what_one_run_gives(trained, sources, tmp_path):
    whole = predict(trained, sources, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    parts = tmp_path / "parts"
    for k in range(2):
        arguments = ("--num_shards=2", f"--shard_index={k}")
        result = predict(trained, sources, parts, *arguments)
        assert result.returncode == 0, result.stderr
        assert "experiments.merge" in result.stdout
        assert f"shard {k} of 2: " in result.stdout
        assert not (parts / "nuclei.csv").exists()
        if k == 0:
            early = run("merge", f"--output={parts}")
            assert early.returncode == 1
            assert "shard 1 of 2 has not run to its end" in early.stderr
            (parts / "nuclei.csv").unlink()
    assert "5 images" in succeed("merge", f"--output={parts}")
    for name in ("nuclei.csv",):
        assert (parts / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert (parts / "report.html").is_file()


def test_results_of_two_settings_are_not_mixed(trained, sources, tmp_path):
    assert predict(trained, sources, tmp_path / "out").returncode == 0
    again = predict(trained, sources, tmp_path / "out")
    assert "5 finished before" in again.stdout
    result = predict(trained, sources, tmp_path / "out", "--tta=8")
    assert result.returncode == 1
    assert "tta=1, now it is 8" in result.stderr


def test_a_run_may_stop_at_the_first_error(trained, sources, tmp_path):
    (sources / "0.png").write_bytes(b"no picture")
    result = predict(trained, sources, tmp_path / "out", "--on_error=stop")
    assert result.returncode == 1 and "0 of 5 files" in result.stdout
    assert "4 files: maybe not done, for --on_error=stop" in result.stderr
    with (tmp_path / "out" / "failed.csv").open(newline="") as file:
        rows = [row["image"] for row in csv.DictReader(file)]
    assert rows == ["0.png", "4 files"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--save=labels,mesh", "cannot save 'mesh'; choose from labels, mask"),
        ("--shard_index=1", "shard_index is 1"),
        ("--scale=-1", "scale is -1; it must lie between 0.01 and 100"),
        ("--pixel_size=-1", "pixel_size is -1.0; it must be above 0.00001 and"),
        ("--threshold=2", "threshold is '2'"),
    ],
)
def test_bad_arguments_of_prediction_are_one_line(
    trained, sources, tmp_path, argument, message
):
    result = predict(trained, sources, tmp_path / "out", argument)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()[-1:]
    assert message in line
    assert not (tmp_path / "out").exists()


def test_bad_settings_are_one_line(tmp_path):
    result = run("train", f"--workdir={tmp_path}", "--size=3")
    assert result.returncode == 1
    assert result.stderr.strip().endswith("size is 3; it must be at least 16 pixels")


@pytest.mark.parametrize(
    "program", ["train", "evaluate", "predict", "predict_dask", "prepare", "merge"]
)
def test_help_tells_what_the_program_does_and_takes(program):
    text = run(program, "--help").stdout
    assert f"python -m experiments.{program}" in text
    required = {
        "train": "--workdir",
        "evaluate": "--checkpoint",
        "predict": "--input",
        "predict_dask": "--scheduler",
        "prepare": "--output",
        "merge": "--output",
    }
    assert required[program] in text
    if program == "train":
        assert "--features" in text and "Highest learning rate" in text


def test_help_of_which_the_rest_is_not_read_is_no_error():
    """As by `| head`: the other end of the pipe is closed before anything is told."""
    command = [sys.executable, "-m", "experiments.merge", "--help"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        program.stdout.close()
        assert program.stderr.read() == ""
    assert program.returncode == 1


def test_the_python_lines_of_the_readme_run_as_they_stand(trained, tmp_path):
    folder, _, _ = trained
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 5
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(folder / "run")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"\d+ nuclei", result.stdout)
