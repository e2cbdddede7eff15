"""What training does at its end: thresholds for the better mode are kept."""

import dataclasses

import pytest

from experiments import training_run
from nucseg_jax.checkpoints import restore_for_inference
from nucseg_jax.config import DecodingConfig
from nucseg_jax.evaluation.tuning import Tuning
from nucseg_jax.training.stopping import StopRequest
from tests.test_checkpoints import CONFIG, create_state, save


@pytest.mark.parametrize(
    ("supervision", "mean_aps", "kept"),
    [
        ("per_head", {"accurate": 0.5, "fast": 0.6}, "fast"),
        ("per_head", {"accurate": 0.7, "fast": 0.6}, "accurate"),
        ("average", {"accurate": 0.5}, "accurate"),
    ],
)
def test_the_mode_with_the_better_nuclei_becomes_the_default(
    tmp_path, monkeypatch, supervision, mean_aps, kept
):
    train = dataclasses.replace(CONFIG.train, supervision=supervision)
    config = dataclasses.replace(CONFIG, train=train)
    save(tmp_path, create_state(config), step=1, iou=0.5, config=config)
    tried = []

    def make_segmenter(*_, mode):
        tried.append(mode)
        return mode

    def tune_decoding(mode, _):
        decoding = DecodingConfig(min_area=tried.index(mode))
        return Tuning(decoding, mean_aps[mode], before=0.1)

    monkeypatch.setattr(training_run, "make_segmenter", make_segmenter)
    monkeypatch.setattr(training_run, "tune_decoding", tune_decoding)
    training_run.tune(tmp_path, [], StopRequest())
    assert tried == list(mean_aps)
    _, _, restored = restore_for_inference(tmp_path)
    assert restored.decoding.mode == kept
    assert restored.decoding.min_area == tried.index(kept)
