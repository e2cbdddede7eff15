"""What a run's folder refuses, so that it tells the truth of its network."""

import dataclasses

import pytest

from experiments.run_folder import alone_in, check_resumable, tell_schedule
from nucseg_jax.config import Config


def change(**settings):
    return Config(train=dataclasses.replace(Config().train, **settings))


def test_a_run_may_be_made_longer_but_not_shorter_than_it_is(tmp_path):
    lines = ["epoch,step,seconds", "0,50,1.5", "1,100,1.5"]
    (tmp_path / "history.csv").write_text("\n".join(lines) + "\n")
    for num_epochs in (2, 30):
        check_resumable(tmp_path, Config(), change(num_epochs=num_epochs))
    with pytest.raises(ValueError, match="2 epochs already: give at least --num_epo"):
        check_resumable(tmp_path, Config(), change(num_epochs=1))
    check_resumable(tmp_path, None, change(num_epochs=1))


def test_the_run_that_was_begun_with_may_be_named_otherwise(tmp_path, monkeypatch):
    """Whether its path is stored as an absolute one depends on its being there."""
    monkeypatch.chdir(tmp_path)
    place = change(init=str(tmp_path / "runs/a"))
    check_resumable(tmp_path, change(init="runs/a"), place)
    check_resumable(tmp_path, place, change(init="runs/a"))
    with pytest.raises(ValueError, match="other settings"):
        check_resumable(tmp_path, place, change(init="runs/b"))


@pytest.mark.parametrize(("before", "after"), [("", "small"), ("small", "")])
def test_a_run_began_as_it_began(tmp_path, before, after):
    with pytest.raises(ValueError, match=f"init was '{before}', is '{after}'"):
        check_resumable(tmp_path, change(init=before), change(init=after))


def test_two_trainings_never_share_a_folder(tmp_path):
    with alone_in(tmp_path / "run"):
        with (
            pytest.raises(ValueError, match="run: another training is under way there"),
            alone_in(tmp_path / "run"),
        ):
            pass
        with alone_in(tmp_path / "other"):
            pass
    with alone_in(tmp_path / "run"):
        pass


def test_another_number_of_epochs_is_told_where_the_learning_rate_depends_on_it(capsys):
    cosine = change(decay="cosine", num_epochs=9)
    for old, new, told in (
        (None, cosine, False),
        (cosine, cosine, False),
        (change(num_epochs=9), change(num_epochs=12), False),
        (cosine, change(decay="cosine", num_epochs=12), True),
    ):
        tell_schedule(old, new)
        assert ("by epoch 9, goes on as that of 12" in capsys.readouterr().out) == told
