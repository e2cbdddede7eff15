"""What evaluation tells of the images that it scores."""

import pytest

from experiments import scored_data
from nucseg_jax.config import Config, DataConfig, TrainConfig
from nucseg_jax.data.index import DatasetError, fingerprint, load_subsets
from tests.helpers import write_disc_dataset


@pytest.fixture
def score(load_program, tmp_path, monkeypatch, capsys):
    """A function of flags and a subset: what is scored, and what is told.

    The network was trained on a folder of ten images, as they are drawn by default.
    """
    write_disc_dataset(tmp_path / "data", num_images=10, side=24)
    data = DataConfig(data_dir=str(tmp_path / "data"))
    prints = {k: fingerprint(v) for k, v in load_subsets(data).items()}
    monkeypatch.setattr(scored_data, "read_fingerprints", lambda folder: prints)
    monkeypatch.setattr(scored_data, "start_device", lambda: "device")

    def score(*arguments, subset="val", **train):
        load_program("evaluate", f"--checkpoint={tmp_path}", *arguments)
        trained = Config(data=data, train=TrainConfig(**train))
        scored = scored_data.load_scored_data(str(tmp_path), subset, trained)
        return scored, capsys.readouterr().out

    return score


@pytest.mark.parametrize("arguments", [(), ("--val_fraction=0.2",)])
def test_nothing_is_told_of_the_training_s_own_validation(score, arguments):
    scored, told = score(*arguments)
    assert len(scored.examples) == 2 and "WARNING" not in told


@pytest.mark.parametrize(
    ("arguments", "subset", "warning"),
    [
        (("--val_fraction=0.9",), "val", "learned from 7 of these 9 images"),
        (("--split_seed=1",), "val", "learned from 2 of these 2 images"),
        ((), "all", "learned from 8 of these 10 images"),
    ],
)
def test_images_that_were_learned_from_are_told(score, arguments, subset, warning):
    _, told = score(*arguments, subset=subset)
    assert f"WARNING: the network {warning}" in told


@pytest.mark.parametrize("subset", ["val", "all"])
def test_validation_that_was_learned_from_is_told(score, subset):
    scored, told = score(subset=subset, learn_val=True)
    num = len(scored.examples)
    assert f"WARNING: the network learned from {num} of these {num} images" in told


def test_tuning_on_validation_that_was_learned_from_is_told(score, tmp_path):
    write_disc_dataset(tmp_path / "other", num_images=3, side=24)
    expected = "the network learned from val: what is tuned there"
    assert expected in score(subset="train", learn_val=True)[1]
    assert expected not in score(subset="train")[1]
    other = f"--data_dir={tmp_path / 'other'}"
    assert expected not in score(other, subset="train", learn_val=True)[1]


def test_what_the_network_began_with_is_told(score):
    _, told = score(init="/runs/first")
    assert "the network began with /runs/first, and knows what that had" in told


def test_a_folder_that_has_grown_may_hold_what_was_learned(score, tmp_path):
    """Drawn again, other images are on the other side."""
    write_disc_dataset(tmp_path / "more", num_images=3, side=24)
    for name in ("images", "labels"):
        for path in (tmp_path / "more" / name).iterdir():
            path.rename(tmp_path / "data" / name / f"new_{path.name}")
    for arguments, subset in (((), "all"), (("--val_fraction=0.4",), "val")):
        _, told = score(*arguments, subset=subset)
        assert "WARNING: the folder has changed since" in told
    _, told = score(learn_val=True)
    assert "WARNING: the folder has changed since" in told


def test_what_is_tuned_on_must_be_there(score, tmp_path):
    write_disc_dataset(tmp_path / "other", num_images=2, side=24)
    rows = ["id,split", "000,test", "001,test"]
    (tmp_path / "other" / "index.csv").write_text("\n".join(rows))
    scored, _ = score(f"--data_dir={tmp_path / 'other'}", subset="test")
    assert len(scored.examples) == 2
    with pytest.raises(DatasetError, match="other: has no val images"):
        _ = scored.val


def test_who_asks_for_train_knows(score):
    _, told = score(subset="train")
    assert "WARNING" not in told


def test_another_folder_is_scored_whole(score, tmp_path):
    write_disc_dataset(tmp_path / "other", num_images=3, side=24)
    scored, told = score(f"--data_dir={tmp_path / 'other'}", subset="all")
    assert len(scored.examples) == 3 and "WARNING" not in told
