"""A protocol from training to the results' file and the table made of it."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from experiments import protocols, tables
from nucseg_jax.config import Config, DataConfig, TrainConfig
from nucseg_jax.data.index import DatasetError
from nucseg_jax.training.stopping import StopRequest
from tests.helpers import write_disc_dataset

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = [
    "--features=2,3",
    "--size=16",
    "--framing=crop",
    "--clahe_clip_limit=0",
    "--augmentation=flips",
    "--batch_size=2",
    "--steps_per_epoch=2",
    "--num_epochs=2",
    "--targets=foreground,boundary",
]


@pytest.fixture
def bowl(tmp_path):
    folder = tmp_path / "data"
    write_disc_dataset(folder, num_images=6, side=24)
    (folder / "labels").rename(folder / "masks")
    write_disc_dataset(tmp_path / "more", num_images=6, side=24)
    (tmp_path / "more" / "labels").rename(folder / "labels")
    splits = ["train"] * 3 + ["val"] * 2 + ["test"]
    with open(folder / "index.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "modality", "random_split", "grouped_split"])
        rows.writerows([f"{k:03}", "discs", s, s] for k, s in enumerate(splits))
    return folder


@pytest.fixture
def reproduce(tmp_path):
    def run(protocol, data_dir, runs, *more, name="tiny", kind="accuracy"):
        arguments = [
            f"--protocol={protocol}",
            f"--name={name}",
            f"--runs={runs}",
            f"--data_dir={data_dir}",
            f"--workdir={tmp_path / 'runs'}",
            f"--results={tmp_path / 'results'}",
            *more,
        ]
        command = [sys.executable, "-m", "experiments.reproduce", *SETTINGS, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        path = tmp_path / "results" / f"{kind}_{protocol}_{name}.json"
        return json.loads(path.read_text())

    return run


def test_grouped_scores_nuclei_of_the_test_set(reproduce, bowl):
    result = reproduce("grouped", bowl, runs=2)
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    assert {run["num_images"] for run in result["runs"]} == {1}
    assert all(run["instances"]["num_images"] == 1 for run in result["runs"])
    assert all(run["train_s"] > 0 for run in result["runs"])
    assert result["config"]["data"]["data_dir"] == ""
    assert result["machine"]["versions"]["jax"]
    (row,) = tables.accuracy_table([result]).splitlines()[2:]
    first, second = (
        run["instances"]["per_image_mean"]["mean_ap"] for run in result["runs"]
    )
    assert row.startswith("| grouped, test | tiny (2…3) | 2 | mean AP ")
    assert f"{(first + second) / 2:.3f}".removeprefix("0") in row
    (row,) = tables.modality_table([result]).splitlines()[2:]
    assert row.startswith("| tiny | discs | 1 |")
    # Finished runs are not trained again.
    again = reproduce("grouped", bowl, runs=2)
    assert again["runs"] == result["runs"]


def test_changes_of_a_recipe_are_compared_on_validation(reproduce, bowl):
    def on_validation(name, *more):
        more = ("--subset=val", *more)
        return reproduce("grouped", bowl, 1, *more, name=name, kind="validation")

    # By name, "faster" comes before "recipe".
    faster = on_validation("faster", "--learning_rate=0.01", "--targets=foreground")
    views = on_validation("views", "--tta=8")
    recipe = on_validation("recipe")
    assert recipe["subset"] == "val" and recipe["runs"][0]["num_images"] == 2
    text = tables.ablation_table([faster, recipe, views])
    first, second, third = text.splitlines()[2:]
    assert first.startswith("| | 1 |")
    assert third.startswith("| `--tta=8` | 1 |")
    assert second.startswith("| `--targets=foreground` `--learning_rate=0.01` | 1 |")


def test_literature_is_scored_by_masks_whatever_was_learned(reproduce, bowl):
    # Whose labels were withdrawn is scored nevertheless.
    (bowl / "labels" / "005.png").unlink()
    by_labels = reproduce("literature", bowl, 1, name="labels")
    by_masks = reproduce(
        "literature", bowl, 1, "--truth=masks", "--targets=foreground", name="masks"
    )
    for result in (by_labels, by_masks):
        assert result["truth"] == "masks" and result["subset"] == "test"
        assert result["score_size"] == 256
        assert result["runs"][0]["num_images"] == 1
        assert result["runs"][0]["instances"] is None
        assert result["runs"][0]["pooled"]["support"] == _count_nuclear(bowl / "masks")
        assert 0 <= result["runs"][0]["per_image_mean"]["dice"] <= 1


def _count_nuclear(folder):
    mask = cv2.imread(str(folder / "005.png"), cv2.IMREAD_UNCHANGED) > 0
    size = (256, 256)
    return cv2.resize(np.uint8(mask), size, interpolation=cv2.INTER_NEAREST_EXACT).sum()


def test_targets_that_masks_cannot_give_are_told_before_any_training(bowl, tmp_path):
    data = DataConfig(
        data_dir=str(bowl), truth="masks", targets=("foreground", "distance")
    )
    with pytest.raises(DatasetError, match="distance must be learned from label"):
        measure_config(Config(data=data), tmp_path / "runs", "literature")
    assert not (tmp_path / "runs").exists()


def test_views_are_averaged_and_named(reproduce, bowl):
    one = reproduce("literature", bowl, 1)
    eight = reproduce("literature", bowl, 1, "--tta=8")
    assert (one["tta"], eight["tta"]) == (1, 8)
    assert one["runs"][0]["pooled"]["auc"] != eight["runs"][0]["pooled"]["auc"]
    (row,) = tables.accuracy_table([eight]).splitlines()[2:]
    assert row.startswith("| literature, test | tiny (2…3), 8 views | 1 |")


def test_numbers_are_written_as_in_papers():
    assert tables._spread([0.5, 0.7], 3) == ".600 (.500 to .700)"
    assert tables._spread([4.06], 1) == "4.1"
    assert tables._spread([1.0], 3) == "1.000"


def measure(data_dir, workdir, protocol="grouped", **train):
    config = Config(data=DataConfig(data_dir=str(data_dir)), train=TrainConfig(**train))
    return measure_config(config, workdir, protocol)


def measure_config(config, workdir, protocol):
    return protocols.measure(
        protocol, config, subset=None, num_runs=1, workdir=workdir, stop=StopRequest()
    )


def test_what_is_scored_is_not_learned_from(bowl, tmp_path):
    with pytest.raises(ValueError, match="leave --learn_val out"):
        measure(bowl, tmp_path / "runs", "original", learn_val=True)
    assert not (tmp_path / "runs").exists()


def test_a_subset_that_is_empty_is_told_before_any_training(bowl, tmp_path):
    with open(bowl / "index.csv", "w") as file:
        file.write("id,grouped_split\n" + "".join(f"{k:03},train\n" for k in range(5)))
        file.write("005,val\n")
    with pytest.raises(
        DatasetError, match=r"no test images \(split by grouped_split\)"
    ):
        measure(bowl, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_data_of_no_protocol_are_told_before_any_training(bowl, tmp_path):
    with pytest.raises(ValueError, match="a protocol needs --data_dir"):
        measure("", tmp_path / "runs")
    shutil.rmtree(bowl / "labels")
    with pytest.raises(DatasetError, match="has no folder labels/ beside images/"):
        measure(bowl, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_recipe_that_is_chosen_learns_validation_too(reproduce, bowl, tmp_path):
    chosen = reproduce("grouped", bowl, 1)
    last = reproduce("grouped", bowl, 1, "--learn_val", name="last")
    assert last["config"]["train"]["learn_val"]
    scores = [result["runs"][0]["per_image_mean"] for result in (chosen, last)]
    assert scores[0] != scores[1]
    before = tmp_path / "runs" / "grouped_last" / "seed_0"
    with pytest.raises(ValueError, match="did not learn from the training images"):
        measure(bowl, tmp_path / "again", init=str(before))


def test_a_network_that_may_know_the_test_images_is_refused(reproduce, bowl, tmp_path):
    with pytest.raises(ValueError, match="--init=small: did not learn from the train"):
        measure(bowl, tmp_path / "runs", init="small")
    assert not (tmp_path / "runs").exists()
    reproduce("grouped", bowl, 1)
    before = tmp_path / "runs" / "grouped_tiny" / "seed_0"
    longer = reproduce("grouped", bowl, 1, f"--init={before}", name="longer")
    assert len(longer["runs"]) == 1
    shutil.copy(bowl / "images" / "001.png", bowl / "images" / "000.png")
    with pytest.raises(ValueError, match="did not learn from the training images"):
        measure(bowl, tmp_path / "again", init=str(before))
