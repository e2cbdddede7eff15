"""What a training tells of the network that it begins with."""

import dataclasses

import pytest

from experiments import known_images
from nucseg_jax.config import Config, DataConfig, TrainConfig
from nucseg_jax.data.index import fingerprint, load_subsets
from tests.helpers import write_disc_dataset


@pytest.fixture
def begin(tmp_path, monkeypatch, capsys):
    """A function of settings of the first training: what the next is told."""
    write_disc_dataset(tmp_path / "data", num_images=10, side=24)
    data = DataConfig(data_dir=str(tmp_path / "data"))
    subsets = load_subsets(data)
    prints = {name: fingerprint(part) for name, part in subsets.items()}

    def begin(is_exported=False, data_dir="", **train):
        first = Config(data=data, train=TrainConfig(**train))
        monkeypatch.setattr(known_images, "read_config", lambda folder: first)
        known = {} if is_exported else prints
        monkeypatch.setattr(known_images, "read_fingerprints", lambda folder: known)
        there = dataclasses.replace(data, data_dir=data_dir or data.data_dir)
        config = Config(data=there, train=TrainConfig(init="first"))
        known_images.warn_of_beginning(config, subsets)
        return capsys.readouterr().out

    return begin


def test_the_same_training_images_are_no_reason_to_warn(begin):
    assert begin() == ""


def test_validation_that_the_beginning_has_learned_from_is_told(begin):
    assert "WARNING: first learned from 2 of these 2 images" in begin(learn_val=True)


def test_a_beginning_that_does_not_tell_what_it_knows_is_told(begin):
    told = begin(is_exported=True)
    assert "2 images are not learned from, but score the network" in told
    assert "WARNING: first was exported without a list of the images" in told


def test_a_beginning_from_elsewhere_knows_none_of_the_images(begin, tmp_path):
    assert begin(data_dir=str(tmp_path), learn_val=True) == ""


def test_what_the_beginning_began_with_is_told(begin):
    assert "first began with older, and knows what that" in begin(init="older")


def test_nothing_is_told_where_nothing_is_begun_with(capsys):
    known_images.warn_of_beginning(Config(), {})
    assert capsys.readouterr().out == ""
