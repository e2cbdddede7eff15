"""Scores a trained network on a data set and draws its best and worst images.

    python -m experiments.evaluate --checkpoint=runs/demo

Data and split are those of the training unless others are named. The output folder,
by default CHECKPOINT/evaluation_SUBSET, gets metrics.json and predictions.png.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

from absl import flags

from experiments import flags as shared

_CHECKPOINT = shared.checkpoint()
_SUBSET = flags.DEFINE_enum(
    "subset", "val", ["train", "val", "test"], "Part of the data to score."
)
_OUTPUT = shared.output("Folder for the results.", required=False)
_MODE = shared.mode()
_THRESHOLD = shared.threshold(
    "Least probability of a nucleus; evaluation also takes 'tuned', for the one of "
    "highest pixel IoU on val."
)
_SCORE_SIZE = flags.DEFINE_integer(
    "score_size", 0, "Score at this square size, pixels; 0 = at each image's own."
)
_DATA_SETTINGS = ["data_dir", "truth", "split", "val_fraction", "split_seed"]
shared.define_settings("data", only=_DATA_SETTINGS)


def main() -> None:
    """Restores, predicts, scores, writes."""
    import tqdm

    from experiments.device import describe_device
    from nucseg_jax.checkpoints import restore_for_inference
    from nucseg_jax.data.index import load_subsets
    from nucseg_jax.evaluation.evaluate import evaluate, tune_threshold
    from nucseg_jax.evaluation.report import format_table
    from nucseg_jax.inference.predictor import make_predict_fn
    from nucseg_jax.inference.segmenter import Segmenter

    model, variables, config = restore_for_inference(_CHECKPOINT.value)
    data = dataclasses.replace(config.data, **shared.given(_DATA_SETTINGS))
    data = shared.resolve_data(data)
    subsets = load_subsets(data)
    head = config.inference.fast_head or None
    predict_fn = make_predict_fn(model, variables, _MODE.value, head=head)
    segmenter = Segmenter(predict_fn, data)
    print(describe_device())

    def progress(name: str):
        return tqdm.tqdm(subsets[name], desc=f"scoring {name}", unit="image")

    if _THRESHOLD.value == "tuned":
        threshold = tune_threshold(
            segmenter, progress("val"), score_size=_SCORE_SIZE.value
        )
    else:
        threshold = shared.parse_threshold(_THRESHOLD.value)
    evaluation = evaluate(
        segmenter,
        progress(_SUBSET.value),
        threshold=threshold,
        score_size=_SCORE_SIZE.value,
    )
    protocol = {
        "checkpoint": _CHECKPOINT.value,
        "data_dir": data.data_dir,
        "split": data.split,
        "truth": data.truth,
        "subset": _SUBSET.value,
        "mode": _MODE.value,
        "score_size": _SCORE_SIZE.value,
    }
    output = pathlib.Path(
        _OUTPUT.value or pathlib.Path(_CHECKPOINT.value) / f"evaluation_{_SUBSET.value}"
    )
    output.mkdir(parents=True, exist_ok=True)
    metrics = json.dumps({"protocol": protocol} | evaluation.to_dict(), indent=2)
    (output / "metrics.json").write_text(metrics + "\n", encoding="utf-8")
    draw_examples(segmenter, evaluation, output / "predictions.png")
    print(f"\n{_SUBSET.value} of {data.data_dir}\n{format_table(evaluation)}")
    print(f"\nwritten: {output / 'metrics.json'}, {output / 'predictions.png'}")


def draw_examples(segmenter, evaluation, path: pathlib.Path) -> None:
    """Draws the best, the median and the worst image at their own size."""
    from nucseg_jax.data.truth import read_pair
    from nucseg_jax.evaluation.figures import draw_predictions
    from nucseg_jax.evaluation.report import best_median_worst

    panels = {}
    for name, score in best_median_worst(evaluation).items():
        image, label_image = read_pair(score.example)
        foreground = segmenter.predict(image)[..., 0] >= evaluation.threshold
        title = f"{name}: pixel IoU {score.counts.iou:.3f}\n{score.example.id[:24]}"
        panels[title] = (image, label_image > 0, foreground)
    draw_predictions(panels, path)


if __name__ == "__main__":
    shared.run(main)
