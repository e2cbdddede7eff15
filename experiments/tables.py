"""Prints tables of accuracy and speed from the files of results.

    python -m experiments.tables [--results=runs/results]

What experiments.reproduce, heads and benchmarks have written, as Markdown; README's are
those of experiments/results.
"""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments import flags as shared
from nucseg_jax.config import Config

RESULTS = pathlib.Path(__file__).parent / "results"
_RESULTS = shared.results("Folder with the files.", str(RESULTS))

Result = dict[str, Any]


class Table(NamedTuple):
    """A table, and the files that it is made of.

    Attributes:
      pattern: Of the files' names.
      write: Makes Markdown of their contents, of one file or more.
    """

    pattern: str
    write: Callable[[list[Result]], str]

    def read(self, folder: pathlib.Path) -> str:
        """Makes the table of a folder; "" if there is nothing to tell."""
        paths = sorted(folder.glob(self.pattern))
        return self.write([json.loads(p.read_text()) for p in paths]) if paths else ""


# Protocol -> the metrics that it is quoted by: (label, path within a run, digits behind
# the point).
_METRICS: dict[str, list[tuple[str, tuple[str, ...], int]]] = {
    "original": [
        ("F1", ("pooled", "f1"), 3),
        ("IoU", ("pooled", "iou"), 3),
        ("AUC", ("pooled", "auc"), 3),
        ("hard-mask AUC", ("pooled", "hard_mask_auc"), 3),
    ],
    "literature": [
        ("Dice", ("per_image_mean", "dice"), 3),
        ("IoU", ("per_image_mean", "iou"), 3),
    ],
    "grouped": [
        ("mean AP", ("instances", "per_image_mean", "mean_ap"), 3),
        ("AP50", ("instances", "per_image_mean", "ap50"), 3),
        ("count error", ("instances", "per_image_mean", "count_error"), 1),
    ],
}
# The recipe that the ablation's others differ from: validation_grouped_recipe.json.
_RECIPE = "recipe"
# Settings that change the time alone.
_WITHOUT_EFFECT = {"num_workers"}
_DEMO_ROWS = {
    "pixels: F1 = Dice": ("pixels", "f1"),
    "pixels: IoU": ("pixels", "iou"),
    "pixels: AUC of the probabilities": ("pixels", "auc"),
    "nuclei: AP at IoU .5": ("nuclei", "ap50"),
    "nuclei: mean AP, IoU .50 to .95": ("nuclei", "mean_ap"),
}
_PARTS = {"train": "training step", "infer": "inference, accurate mode"}


def main() -> None:
    """Prints all tables.

    Raises:
      ValueError: If the folder has no results.
    """
    folder = pathlib.Path(_RESULTS.value)
    texts = [text for table in TABLES + NOTES_TABLES if (text := table.read(folder))]
    if not texts:
        raise ValueError(f"{folder}: holds no results of experiments.reproduce")
    print("\n\n".join(texts))


def demo_table(results: list[Result]) -> str:
    """Formats demo.json: metrics.json as `make demo` leaves it."""
    (result,) = results
    parts = {"pixels": result, "nuclei": result["instances"]}
    rows = [
        (
            label,
            _number(parts[part]["pooled"][name], 3),
            _number(parts[part]["per_image_mean"][name], 3),
        )
        for label, (part, name) in _DEMO_ROWS.items()
    ]
    return _format(("", "pooled", "mean of images"), rows)


def accuracy_table(results: list[Result]) -> str:
    """Formats the results of `experiments.reproduce`: a row each."""
    rows = []
    for result in results:
        runs = result["runs"]
        values = ", ".join(
            f"{label} {_spread([_get(run, path) for run in runs], digits)}"
            for label, path, digits in _METRICS[result["protocol"]]
        )
        minutes = sum(run["train_s"] for run in runs) / len(runs) / 60
        features = "…".join(
            str(f) for f in _ends(result["config"]["model"]["features"])
        )
        protocol = f"{result['protocol']}, {result['subset']}"
        views = f", {_views(result)} views" if _views(result) > 1 else ""
        network = f"{result['name']} ({features}){views}"
        rows.append((protocol, network, len(runs), values, f"{minutes:.0f} min"))
    return _format(("protocol", "network", "runs", "result", "training"), rows)


def ablation_table(results: list[Result]) -> str:
    """Formats a recipe and what each change of it does, on validation."""
    (recipe, *_) = sorted(results, key=lambda result: result["name"] != _RECIPE)
    rows = [
        (
            _differences(recipe, result) or _baseline_name(result),
            len(result["runs"]),
            *(
                _spread([_get(run, path) for run in result["runs"]], digits)
                for _, path, digits in _METRICS["grouped"]
            ),
        )
        for result in results
    ]
    labels = [label for label, _, _ in _METRICS["grouped"]]
    # The recipe, without differences, comes first.
    return _format(("change", "runs", *labels), sorted(rows))


def modality_table(results: list[Result]) -> str:
    """Formats the nuclei of each modality, of the first run of a grouped result."""
    header = ("network", "modality", "images", "mean AP", "AP50")
    rows = [
        (
            result["name"],
            name.replace("_", " "),
            row["num_images"],
            _number(row["mean_ap"], 3),
            _number(row["ap50"], 3),
            f"{row['count_error']:.1f}",
            _number(row["pixel_iou"], 3),
        )
        for result in results
        for name, row in result["runs"][0]["instances"]["by_modality"].items()
    ]
    return _format((*header, "count error", "pixel IoU"), rows)


def heads_table(results: list[Result]) -> str:
    """Formats the results of `experiments.heads`, times relative to all heads."""
    header = ("network", "head", "parameters", "pixel IoU", "mean AP")
    rows = [
        (
            f"{result['name']}, {result['subset']}",
            row["head"] or "all",
            f"{row['parameters']:,}",
            _number(row["iou"], 3),
            _number(row["mean_ap"], 3) if "mean_ap" in row else "",
            f"{1000 * row['s_per_image']:.0f}",
            f"{result['rows'][-1]['s_per_image'] / row['s_per_image']:.1f}",
        )
        for result in results
        for row in result["rows"]
    ]
    return _format((*header, "ms an image", "speed"), rows)


def speed_table(results: list[Result]) -> str:
    """Formats the original's network on CPUs beside a peer."""
    rows = [
        (
            title,
            result["machine"]["instructions"],
            result["machine"]["config"]["model"]["dtype"],
            row["batch_size"],
            f"{row['s_per_image']:.2f}",
            f"{row['peer_s_per_image']:.2f}",
            f"{row['ratio']:.2f}",
        )
        for part, title in _PARTS.items()
        for result in results
        for row in result["rows"]
        if row["part"] == part
    ]
    header = ("", "processor", "dtype", "batch", "here", "PyTorch", "times as fast")
    return _format(header, rows)


def _format(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Formats a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    # An empty corner is one space wide.
    return "\n".join(
        "| " + " | ".join(map(str, line)).lstrip() + " |" for line in lines
    )


def _baseline_name(result: Result) -> str:
    """Nothing for the project's own recipe: the others are changes of it."""
    return "" if result["name"] == _RECIPE else result["name"]


def _differences(recipe: Result, other: Result) -> str:
    """Names the settings that differ, as on the command line."""
    before, after = _settings(recipe), _settings(other)
    return " ".join(
        f"`--{name}={_flag_value(value)}`"
        for name, value in after.items()
        if value != before[name] and name not in _WITHOUT_EFFECT
    )


def _settings(result: Result) -> dict[str, Any]:
    """Those of the flags; what an older file does not know has its default."""
    config = Config.from_dict(result["config"]).to_dict()
    sections = [config[name] for name in ("data", "model", "train")]
    return dict(
        itertools.chain.from_iterable(section.items() for section in sections),
        tta=_views(result),
    )


def _views(result: Result) -> int:
    return result.get("tta", 1)


def _flag_value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _get(run: Result, path: tuple[str, ...]) -> float:
    value: Any = run
    for key in path:
        value = value[key]
    return float(value)


def _spread(values: list[float], digits: int) -> str:
    """Formats a mean, with the range where there are several."""
    mean = _number(sum(values) / len(values), digits)
    if len(values) == 1:
        return mean
    return f"{mean} ({_number(min(values), digits)} to {_number(max(values), digits)})"


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if 0 < value < 1 else text


def _ends(values: list[int]) -> tuple[int, int]:
    return values[0], values[-1]


TABLES = (
    Table("demo.json", demo_table),
    Table("accuracy_*.json", accuracy_table),
    Table("accuracy_grouped_*.json", modality_table),
    Table("heads_*.json", heads_table),
    Table("speed_*_full_width*.json", speed_table),
)
NOTES_TABLES = (Table("validation_grouped_*.json", ablation_table),)


if __name__ == "__main__":
    shared.run(main)
