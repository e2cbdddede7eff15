"""What the program for evaluation writes, with a network whose answers are known."""

import dataclasses
import json
import pathlib

import numpy as np
import PIL.Image
import pytest

from nucseg_jax import pretrained
from nucseg_jax.config import DataConfig, DecodingConfig, ModelConfig
from nucseg_jax.data.index import find_examples
from nucseg_jax.evaluation.evaluate import evaluate
from nucseg_jax.inference.segmenter import Segmenter
from tests.helpers import TINY_FEATURES, write_disc_dataset
from tests.test_checkpoints import CONFIG, create_state, save


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("runs/mine", "runs/mine/evaluation_val"),
        ("small", "runs/small/evaluation_val"),
        (str(pretrained.find("base")), "runs/base/evaluation_val"),
    ],
)
def test_nothing_is_written_into_the_package(load_program, checkpoint, expected):
    program = load_program("evaluate", f"--checkpoint={checkpoint}")
    assert program.results_folder() == pathlib.Path(expected)


@pytest.fixture
def segmenter():
    """Finds the discs, which are brighter than the ground."""
    config = DataConfig(framing="crop", clahe_clip_limit=0)
    decoding = DecodingConfig(method="components", threshold=0.4)
    return Segmenter(lambda images: images[..., :1], config, decoding=decoding)


def evaluate_discs(load_program, segmenter, folder, *, truth="labels"):
    """Scores four images, and writes the results as the program does."""
    write_disc_dataset(folder / "data", num_images=4, side=48)
    if truth == "masks":
        (folder / "data" / "labels").rename(folder / "data" / "masks")
    program = load_program("evaluate", "--checkpoint=none")
    examples = find_examples(folder / "data", truth=truth)
    evaluation = evaluate(segmenter, examples, threshold=0.4)
    out = folder / "out"
    program.write_results(segmenter, evaluation, {"subset": "val"}, out)
    return evaluation, out


def size_of(path: pathlib.Path):
    with PIL.Image.open(path) as picture:
        assert np.asarray(picture.convert("L")).std() > 10
        return picture.size


def test_label_images_give_instance_metrics_and_pictures(
    load_program, segmenter, tmp_path, capsys
):
    evaluation, out = evaluate_discs(load_program, segmenter, tmp_path)
    names = ["average_precision.png", "metrics.json", "predictions.png", "report.html"]
    assert sorted(path.name for path in out.iterdir()) == names
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["protocol"] == {"subset": "val"}
    assert metrics["decoding"]["threshold"] == 0.4
    mean = metrics["instances"]["per_image_mean"]
    assert mean == pytest.approx(evaluation.mean_instances())
    assert 0.3 < mean["mean_ap"] < 1
    width, height = size_of(out / "predictions.png")
    assert 1500 < width < 2500 and height > width
    size_of(out / "average_precision.png")
    page = (out / "report.html").read_text()
    assert "pixel_threshold" in page and "decoding_threshold" in page
    assert page.count("data:image/png;base64,") == 2
    for value in (mean["mean_ap"], mean["ap50"]):
        assert f"<dd>{value:.3f} <small>an image</small></dd>" in page
    assert f"<dd>{metrics['pooled']['iou']:.3f} <small>pooled</small></dd>" in page
    printed = capsys.readouterr().out
    assert all(str(out / name) in printed for name in names)


def test_masks_give_pixel_metrics_and_their_picture(load_program, segmenter, tmp_path):
    _, out = evaluate_discs(load_program, segmenter, tmp_path, truth="masks")
    names = sorted(path.name for path in out.iterdir())
    assert names == ["metrics.json", "predictions.png", "report.html"]
    assert "nuclei cannot be scored" in (out / "report.html").read_text()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["instances"] is None
    assert metrics["pooled"]["iou"] > 0.8
    size_of(out / "predictions.png")


def test_thresholds_are_tuned_on_validation_whatever_is_scored(
    load_program, tmp_path, monkeypatch
):
    data = tmp_path / "data"
    write_disc_dataset(data, num_images=6, side=24)
    rows = (f"{k:03},{s}" for k, s in enumerate(["train", "val", "val"] + 3 * ["test"]))
    (data / "index.csv").write_text("\n".join(["id,split", *rows]) + "\n")
    config = dataclasses.replace(
        CONFIG,
        data=dataclasses.replace(CONFIG.data, data_dir=str(data), split="split"),
        model=ModelConfig(features=TINY_FEATURES),
    )
    save(tmp_path / "run", create_state(config), step=1, iou=0.5, config=config)
    program = load_program(
        "evaluate",
        f"--checkpoint={tmp_path / 'run'}",
        "--subset=test",
        "--threshold=tuned",
    )
    tuned, tune = [], program.tune_threshold
    monkeypatch.setattr(
        program,
        "tune_threshold",
        lambda segmenter, examples, **options: tune(
            segmenter, keep(examples, tuned), **options
        ),
    )
    program.main()
    assert tuned == ["001", "002"]
    results = tmp_path / "run" / "evaluation_test" / "metrics.json"
    scored = json.loads(results.read_text())["images"]
    assert list(scored) == ["003", "004", "005"]


def keep(examples, ids):
    for example in examples:
        ids.append(example.id)
        yield example


def test_panels_show_what_was_scored(load_program, segmenter, tmp_path, monkeypatch):
    program = load_program("evaluate", "--checkpoint=none", "--score_size=24")
    write_disc_dataset(tmp_path / "data", num_images=4, side=48)
    examples = find_examples(tmp_path / "data")
    evaluation = evaluate(segmenter, examples, threshold=0.4, score_size=24)
    shown = []
    monkeypatch.setattr(
        program.figures, "draw_nuclei", lambda panels, path: shown.extend(panels)
    )
    program.draw_nuclei(segmenter, evaluation, tmp_path / "predictions.png")
    best, median, worst = shown
    assert best.title.startswith("best: 00") and worst.title.startswith("worst: 00")
    scores = [float(panel.title.split("mean AP ")[1]) for panel in shown]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[2]
    for panel in shown:
        assert panel.image.shape == (24, 24, 3)
        assert panel.true_labels.shape == panel.pred_labels.shape == (24, 24)
    assert len(np.unique(median.true_labels)) > 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0121d675", "0121d675"),
        ("0123456789abcdef", "0123456789abcdef"),
        ("0123456789abcdefg", "0123456789abcde…"),
    ],
)
def test_long_names_are_cut(load_program, name, expected):
    program = load_program("evaluate", "--checkpoint=none")
    assert program.shorten(name) == expected
