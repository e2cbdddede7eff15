"""What training does at its end: thresholds for the better mode are kept."""

import dataclasses
import os
import pathlib
import signal
import types

import numpy as np
import PIL.Image
import pytest

from experiments import training_run
from nucseg_jax.checkpoints import read_config
from nucseg_jax.config import (
    Config,
    DataConfig,
    DecodingConfig,
    ModelConfig,
    TrainConfig,
)
from nucseg_jax.data.index import Example, find_examples
from nucseg_jax.evaluation.tuning import Tuning
from nucseg_jax.training.stopping import Stopped, StopRequest
from tests.helpers import write_disc_dataset
from tests.test_checkpoints import CONFIG, create_state, save

MODES = pytest.mark.parametrize(
    ("supervision", "scores", "kept"),
    [
        ("per_head", {"accurate": 0.5, "fast": 0.6}, "fast"),
        ("per_head", {"accurate": 0.7, "fast": 0.6}, "accurate"),
        ("average", {"accurate": 0.5, "fast": 0.6}, "accurate"),
    ],
)


def save_run(workdir, supervision):
    train = dataclasses.replace(CONFIG.train, supervision=supervision)
    config = dataclasses.replace(CONFIG, train=train)
    save(workdir, create_state(config), step=1, iou=0.5, config=config)


@MODES
def test_the_mode_with_the_better_nuclei_becomes_the_default(
    tmp_path, monkeypatch, supervision, scores, kept
):
    save_run(tmp_path, supervision)
    tried = []

    def make_segmenter(*_, mode):
        tried.append(mode)
        return mode

    def tune_decoding(mode, _, *, check):
        check()
        decoding = DecodingConfig(min_area=tried.index(mode))
        return Tuning(decoding, scores[mode], before=0.1, num_images=1)

    monkeypatch.setattr(training_run, "make_segmenter", make_segmenter)
    monkeypatch.setattr(training_run, "tune_decoding", tune_decoding)
    monkeypatch.setattr(training_run, "can_tune", lambda examples: True)
    training_run.tune(tmp_path, [], StopRequest())
    assert tried == list(scores)
    assert read_config(tmp_path).decoding.mode == kept
    for mode in tried:
        decoding = read_config(tmp_path, mode).decoding
        assert decoding == DecodingConfig(mode=mode, min_area=tried.index(mode))


@MODES
def test_of_masks_the_mode_with_the_better_pixels_becomes_the_default(
    tmp_path, monkeypatch, capsys, supervision, scores, kept
):
    """Binary masks tell no nuclei apart: there is nothing else to choose by."""
    save_run(tmp_path, supervision)
    decoding = DecodingConfig(min_area=33)

    def make_segmenter(*_, mode):
        return types.SimpleNamespace(decoding=decoding, mode=mode)

    def evaluate(segmenter, examples, *, threshold):
        pooled = {"iou": scores[segmenter.mode], "support": 1}
        return types.SimpleNamespace(pooled=lambda: pooled)

    monkeypatch.setattr(training_run, "make_segmenter", make_segmenter)
    monkeypatch.setattr(training_run, "evaluate", evaluate)
    mask = Example("a", pathlib.Path("a.png"), (pathlib.Path("mask.png"),), "mask", "a")
    training_run.tune(tmp_path, [mask], StopRequest())
    assert "decoding is not tuned" in capsys.readouterr().out
    assert read_config(tmp_path).decoding == dataclasses.replace(decoding, mode=kept)


def test_where_nothing_is_there_to_be_found_accurate_mode_stays(tmp_path, monkeypatch):
    """A mode that finds nothing is without a fault there."""
    save_run(tmp_path, "per_head")
    write_disc_dataset(tmp_path / "data", num_images=1, side=24)
    (example,) = find_examples(tmp_path / "data")
    PIL.Image.fromarray(np.zeros((24, 24), np.uint8)).save(example.truth[0])
    training_run.tune(tmp_path, [example], StopRequest())
    assert read_config(tmp_path).decoding == DecodingConfig()


def test_images_that_stand_on_both_sides_are_told(tmp_path, capsys):
    write_disc_dataset(tmp_path, num_images=3, side=24)
    first, second, copy = find_examples(tmp_path)
    subsets = {"train": [first], "val": [second], "test": [copy]}
    training_run.warn_of_copies(subsets, ["train"])
    assert not capsys.readouterr().out
    copy.image.write_bytes(first.image.read_bytes())
    training_run.warn_of_copies(subsets, ["train"])
    told = capsys.readouterr().out
    warning = "WARNING: 1 of the test images are copies of images that are learned from"
    assert warning in told


def test_validation_that_is_learned_from_is_not_told_to_be_copies(tmp_path, capsys):
    write_disc_dataset(tmp_path, num_images=3, side=24)
    first, second, copy = find_examples(tmp_path)
    copy.image.write_bytes(second.image.read_bytes())
    subsets = {"train": [first], "val": [second], "test": [copy]}
    training_run.warn_of_copies(subsets, ["train"])
    assert not capsys.readouterr().out
    training_run.warn_of_copies(subsets, ["train", "val"])
    told = capsys.readouterr().out
    assert "1 of the test images" in told and "of the val" not in told


@pytest.mark.parametrize(
    ("balance_by", "steps_per_epoch", "expected"),
    [("", 0, 5), ("kind", 0, 6), ("kind", 9, 9)],
)
def test_an_epoch_is_as_long_as_the_images_with_their_repeats(
    balance_by, steps_per_epoch, expected
):
    """Of five images, the one of the rare kind comes twice."""
    path = pathlib.Path("a.png")
    kinds = [{"kind": "a"}] * 4 + [{"kind": "b"}]
    examples = [Example("a", path, (path,), "mask", "a", kind) for kind in kinds]
    config = dataclasses.replace(
        CONFIG,
        data=dataclasses.replace(CONFIG.data, balance_by=balance_by),
        train=dataclasses.replace(
            CONFIG.train, batch_size=1, steps_per_epoch=steps_per_epoch
        ),
    )
    nothing = types.SimpleNamespace()
    run = training_run.Run(
        config, path, {"train": examples}, {}, nothing, nothing, nothing
    )
    assert run.steps_per_epoch == expected


@pytest.mark.parametrize(("learn_val", "expected"), [(False, 3), (True, 5)])
def test_validation_is_learned_from_if_asked(learn_val, expected):
    path = pathlib.Path("a.png")
    examples = [Example(str(k), path, (path,), "mask", str(k)) for k in range(5)]
    config = dataclasses.replace(
        CONFIG,
        train=dataclasses.replace(CONFIG.train, learn_val=learn_val),
    )
    nothing = types.SimpleNamespace()
    subsets = {"train": examples[:3], "val": examples[3:], "test": []}
    run = training_run.Run(config, path, subsets, {}, nothing, nothing, nothing)
    assert run.learned == examples[:expected] and run.subsets["val"] == examples[3:]


def test_a_beginning_tells_data_model_and_supervision_but_not_where_data_lie(tmp_path):
    before = dataclasses.replace(
        CONFIG,
        data=dataclasses.replace(
            CONFIG.data, split="a", size=48, balance_by="stain", pixel_size=0.5
        ),
        train=dataclasses.replace(CONFIG.train, supervision="per_head", seed=3),
    )
    save(tmp_path / "run", create_state(before), step=1, iou=0.5, config=before)
    asked = Config(train=TrainConfig(init=str(tmp_path / "run"), seed=7))
    config = training_run.inherit(asked, given={"size": 256})
    assert config.model == before.model
    assert config.data == dataclasses.replace(
        before.data, data_dir="", split="", size=256, balance_by="", pixel_size=0
    )
    assert config.train == dataclasses.replace(asked.train, supervision="per_head")
    kept = training_run.inherit(asked, given={"supervision": "average"})
    assert kept.train.supervision == "average"


def test_sizes_that_cannot_be_halved_are_refused_before_anything_is_read():
    model = ModelConfig(features=(4, 6, 8))
    training_run.check_size(Config(data=DataConfig(size=36), model=model))
    with pytest.raises(ValueError, match="size is 34; with 3 features.*multiple of 4"):
        training_run.check_size(Config(data=DataConfig(size=34), model=model))


def test_whole_images_take_no_zoom_of_crops_from_the_beginning(tmp_path):
    crops = dataclasses.replace(CONFIG.data, framing="crop", zoom=1.5, cache_mib=3)
    before = dataclasses.replace(CONFIG, data=crops)
    save(tmp_path / "run", create_state(before), step=1, iou=0.5, config=before)
    asked = Config(train=TrainConfig(init=str(tmp_path / "run")))
    assert training_run.inherit(asked, given={}).data.zoom == 1.5
    whole = training_run.inherit(asked, given={"framing": "resize"}).data
    assert whole.zoom == 1 and whole.framing == "resize"
    assert whole.cache_mib == asked.data.cache_mib


@pytest.fixture
def short_run(tmp_path):
    """A finished run of one step, and its settings."""
    data = tmp_path / "data"
    write_disc_dataset(data, num_images=5, side=32)
    write_index(data, *["train,a"] * 3, "train,b", "val,a")
    config = dataclasses.replace(
        CONFIG,
        data=DataConfig(
            data_dir=str(data), size=32, augmentation="flips", balance_by="stain"
        ),
        train=TrainConfig(batch_size=2, steps_per_epoch=1, num_epochs=1),
    )
    training_run.run(config, tmp_path / "run", StopRequest())
    return config, tmp_path / "run"


def write_index(data, *rows):
    lines = [f"{number:03},{row}\n" for number, row in enumerate(rows)]
    (data / "index.csv").write_text("id,split,stain\n" + "".join(lines))


def prolong(config):
    train = dataclasses.replace(config.train, num_epochs=2)
    return dataclasses.replace(config, train=train)


def test_what_was_tuned_for_a_network_is_forgotten_when_it_goes_on(short_run):
    config, workdir = short_run
    assert (workdir / "decoding.json").is_file()
    with StopRequest() as stop, pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
        training_run.run(prolong(config), workdir, stop)
    assert not (workdir / "decoding.json").exists()
    training_run.run(prolong(config), workdir, StopRequest())
    assert (workdir / "decoding.json").is_file()


def test_a_run_whose_images_would_come_in_other_numbers_does_not_go_on(short_run):
    config, workdir = short_run
    data = pathlib.Path(config.data.data_dir)
    write_index(data, *["train,c"] * 3, "train,d", "val,a")
    training_run.run(prolong(config), workdir, StopRequest())  # As often as before.
    write_index(data, *["train,a"] * 4, "val,a")
    with pytest.raises(ValueError, match="column stain of index.csv is no longer"):
        training_run.run(prolong(config), workdir, StopRequest())
