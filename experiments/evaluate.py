"""Scores a trained network on a data set and draws its best and worst images.

    python -m experiments.evaluate --checkpoint=runs/demo

Data and split are those of the training unless others are named; networks that were
exported do not tell theirs: name them with --data_dir and --split. The output folder,
by default CHECKPOINT/evaluation_SUBSET (runs/NAME/... of the project's own networks),
gets metrics.json, predictions.png, and average_precision.png if the truth tells nuclei
apart (label images do, masks do not); report.html shows them all on one page.
"""

from __future__ import annotations

import pathlib

import tqdm

from experiments import flags as shared
from experiments.scored_data import describe_split, load_scored_data
from nucseg_jax import pretrained
from nucseg_jax.checkpoints import restore_for_inference
from nucseg_jax.config import DataConfig
from nucseg_jax.data.index import Example
from nucseg_jax.evaluation import figures
from nucseg_jax.evaluation.evaluate import (
    Evaluation,
    evaluate,
    label_example,
    predict_example,
    tune_threshold,
)
from nucseg_jax.evaluation.page import write_page
from nucseg_jax.evaluation.report import ap_curves, best_median_worst, format_table
from nucseg_jax.files import make_folder, write_json
from nucseg_jax.inference.segmenter import Segmenter, make_segmenter

_CHECKPOINT = shared.checkpoint()
_SUBSET = shared.subset()
_OUTPUT = shared.output("Folder for the results.", required=False)
_MODE = shared.mode()
_TTA = shared.tta()
_THRESHOLD = shared.threshold(
    "Least probability of a nucleus, for the pixel metrics; evaluation also takes "
    "'tuned', for the one of highest pixel IoU on val.",
    default="0.5",
)
_SCORE_SIZE = shared.score_size()
shared.define_settings("data", only=shared.DATA_SETTINGS)


def main() -> None:
    """Restores, predicts, scores, writes."""
    mode = _MODE.value or None
    model, variables, config = restore_for_inference(
        pretrained.resolve(_CHECKPOINT.value), mode
    )
    scored = load_scored_data(_CHECKPOINT.value, _SUBSET.value, config)
    tuned_on = scored.val if _THRESHOLD.value == "tuned" else []
    folder = results_folder()
    make_folder(folder)
    segmenter = make_segmenter(model, variables, config, mode=mode, tta=int(_TTA.value))
    evaluation = evaluate(
        segmenter,
        progress(scored.examples, f"scoring {_SUBSET.value}"),
        threshold=choose_threshold(segmenter, tuned_on),
        score_size=_SCORE_SIZE.value,
    )
    data = scored.settings
    print(f"\n{_SUBSET.value} of {data.data_dir}\n{format_table(evaluation)}\n")
    about = protocol(data, segmenter.decoding.mode, config.fast_head)
    write_results(segmenter, evaluation, about, folder)


def progress(examples: list[Example], name: str) -> tqdm.tqdm:
    """Wraps examples with a progress bar."""
    return tqdm.tqdm(examples, desc=name, unit="image")


def choose_threshold(segmenter: Segmenter, tuned_on: list[Example]) -> float:
    """Returns the threshold that --threshold asks for."""
    if _THRESHOLD.value != "tuned":
        return shared.parse_threshold(_THRESHOLD.value)
    return tune_threshold(
        segmenter, progress(tuned_on, "tuning on val"), score_size=_SCORE_SIZE.value
    )


def protocol(data: DataConfig, mode: str, fast_head: int) -> dict[str, str | float]:
    """Returns what the numbers were measured on, to stand beside them."""
    return {
        "checkpoint": _CHECKPOINT.value,
        "data_dir": data.data_dir,
        **describe_split(data),
        "truth": data.truth,
        "subset": _SUBSET.value,
        "mode": mode,
        "head": fast_head if mode == "fast" else "all",
        "tta": int(_TTA.value),
        "score_size": _SCORE_SIZE.value,
    }


def results_folder() -> pathlib.Path:
    """Returns the folder for the results, by default inside the run's own.

    For a network of the project, inside `runs/` and its name.
    """
    run = pretrained.resolve(_CHECKPOINT.value)
    if pretrained.is_shipped(run):
        run = pathlib.Path("runs", run.name)
    default = run / f"evaluation_{_SUBSET.value}"
    return pathlib.Path(_OUTPUT.value) if _OUTPUT.value else default


def write_results(
    segmenter: Segmenter, evaluation: Evaluation, about: dict, folder: pathlib.Path
) -> None:
    """Writes metrics.json, the pictures, and the page of both."""
    numbers, page = folder / "metrics.json", folder / "report.html"
    write_json(numbers, {"protocol": about} | evaluation.to_dict())
    pictures = {"Best, median and worst image": folder / "predictions.png"}
    draw = draw_nuclei if evaluation.instance_counts else draw_masks
    draw(segmenter, evaluation, folder / "predictions.png")
    if evaluation.instance_counts:
        pictures["Average precision"] = folder / "average_precision.png"
        figures.draw_average_precision(
            ap_curves(evaluation), folder / "average_precision.png"
        )
    title = f"Evaluation of {_CHECKPOINT.value} on {_SUBSET.value}"
    decoding = dict(evaluation.decoding or {})
    settings = about | {"pixel_threshold": evaluation.threshold}
    settings |= {f"decoding_{name}": value for name, value in decoding.items()}
    write_page(evaluation, page, title=title, settings=settings, pictures=pictures)
    print(f"written: {', '.join(map(str, [page, numbers, *pictures.values()]))}")


def draw_nuclei(
    segmenter: Segmenter, evaluation: Evaluation, path: pathlib.Path
) -> None:
    """Draws the nuclei of the best, the median and the worst image."""
    panels = []
    for place, score in best_median_worst(evaluation).items():
        # Again: keeping all predictions could fill the memory.
        image, true, found = label_example(
            segmenter, score.example, score_size=_SCORE_SIZE.value
        )
        mean_ap = score.to_dict()["instances"]["mean_ap"]
        title = f"{place}: {shorten(score.example.id)}, mean AP {mean_ap:.3f}"
        panels.append(figures.NucleiPanel(title, image, true, found))
    figures.draw_nuclei(panels, path)


def draw_masks(
    segmenter: Segmenter, evaluation: Evaluation, path: pathlib.Path
) -> None:
    """Draws the foreground of the best, the median and the worst image."""
    panels = {}
    for place, score in best_median_worst(evaluation).items():
        image, label_image, probs = predict_example(
            segmenter, score.example, score_size=_SCORE_SIZE.value
        )
        title = (
            f"{place}: pixel IoU {score.counts.iou:.3f}\n{shorten(score.example.id)}"
        )
        foreground = probs[..., 0] >= evaluation.threshold
        panels[title] = (image, label_image > 0, foreground)
    figures.draw_predictions(panels, path)


def shorten(name: str) -> str:
    """Cuts names above 16 letters; the Data Science Bowl's have 64."""
    return name if len(name) <= 16 else f"{name[:15]}…"


if __name__ == "__main__":
    shared.run(main)
