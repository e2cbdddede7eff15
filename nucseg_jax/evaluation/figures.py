"""Pictures of a run: training curves, and predictions beside the truth.

Figures are drawn without pyplot, which keeps state for the whole process.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import matplotlib.patheffects
import numpy as np
import scipy.ndimage
import skimage.measure
import skimage.segmentation
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from nucseg_jax.evaluation.instance_metrics import THRESHOLDS
from nucseg_jax.evaluation.matching import match_nuclei, overlap_table
from nucseg_jax.files import replacing
from nucseg_jax.inference import outputs

_CURVES = {
    "loss": "loss",
    "accuracy": "pixel accuracy",
    "iou": "pixel IoU",
    "auc": "pixel AUC",
}
_TRAIN_COLOUR, _VAL_COLOUR = "#7f7f7f", "#d95f02"
# Blue and orange can be told apart with every kind of colour vision.
_ERROR_COLOURS = {"false positive": (255, 127, 14), "false negative": (31, 119, 255)}
# From Okabe and Ito's palette, made for every kind of colour vision; seen on black, on
# white and on stained tissue, with a dark rim around each line.
_MATCHED, _MISSED, _FALSE = "#56b4e9", "#d55e00", "#f0e442"
_GROUP_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_COLUMN_INCHES, _TALLEST = 4.4, 1.2


@dataclasses.dataclass(frozen=True)
class NucleiPanel:
    """One image to show with its true and its predicted nuclei.

    Attributes:
      title: Which image, and how good.
      image: float32 [H, W, 3] in [0, 1].
      true_labels: Label image [H, W].
      pred_labels: Label image [H, W].
    """

    title: str
    image: np.ndarray
    true_labels: np.ndarray
    pred_labels: np.ndarray


def draw_curves(rows: Sequence[Mapping[str, float]], path: str | os.PathLike) -> None:
    """Draws training and validation curves of `history.read_history`'s rows."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, (name, title) in zip(
        figure.subplots(2, 2).ravel(), _CURVES.items(), strict=True
    ):
        # A run that went on with a newer version may lack a column in its first rows.
        train = [row.get(f"train_{name}", np.nan) for row in rows]
        val = [row.get(f"val_{name}", np.nan) for row in rows]
        axes.plot(
            epochs, train, color=_TRAIN_COLOUR, marker="o", ms=3, label="training"
        )
        axes.plot(epochs, val, color=_VAL_COLOUR, marker="o", ms=3, label="validation")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    _save(figure, path)


def draw_batch(
    images_u8: np.ndarray,
    masks: np.ndarray,
    targets: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Draws images as training sees them, and their targets, one row an image.

    Args:
      images_u8: uint8 [B, H, W, 3], augmented.
      masks: [B, H, W, T], bool or float32 in [0, 1].
      targets: Names of the T channels.
      path: The picture to write.
    """
    num_columns = 1 + len(targets)
    size = (2.6 * num_columns, 2.6 * len(images_u8) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(images_u8), num_columns, squeeze=False)
    for row, image, mask in zip(grid, images_u8, masks, strict=True):
        _show(row[0], image, "image")
        for axes, name, channel in zip(
            row[1:], targets, np.moveaxis(mask, -1, 0), strict=True
        ):
            _show(axes, channel.astype(np.float32), name)
    _save(figure, path)


def draw_predictions(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    path: str | os.PathLike,
) -> None:
    """Draws image, truth, prediction and overlay, one row a panel.

    Args:
      panels: Title -> image float32 [H, W, 3], true foreground bool [H, W],
        predicted foreground bool [H, W].
      path: The picture to write.
    """
    figure = Figure(figsize=(12, 3.2 * len(panels) + 0.4), layout="constrained")
    grid = figure.subplots(len(panels), 4, squeeze=False)
    for row, (title, (image, mask, foreground)) in zip(
        grid, panels.items(), strict=True
    ):
        _show(row[0], outputs.stretch_contrast(image), "image")
        _show(row[1], mask, "truth")
        _show(row[2], foreground, "prediction")
        _show(row[3], draw_errors(image, mask, foreground), "overlay")
        row[0].set_ylabel(_printable(title), fontsize=10)
    names = {"outline of prediction": outputs.OUTLINE_COLOUR} | _ERROR_COLOURS
    for name, colour in names.items():
        figure.axes[0].plot([], [], color=np.divide(colour, 255), lw=5, label=name)
    figure.legend(loc="outside lower right", ncols=3, frameon=False)
    _save(figure, path)


def draw_nuclei(panels: Sequence[NucleiPanel], path: str | os.PathLike) -> None:
    """Draws each image, its true and its predicted nuclei, one row a panel.

    Outlines tell by their colour which nuclei match at IoU .5; those that do not are
    drawn with thicker lines.
    """
    heights = [min(p.image.shape[0] / p.image.shape[1], _TALLEST) for p in panels]
    size = (3 * _COLUMN_INCHES, sum(_COLUMN_INCHES * h + 0.4 for h in heights) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        len(panels), 3, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for row, panel in zip(grid, panels, strict=True):
        _draw_panel(row, panel)
    colours = {"matched (IoU > 0.5)": _MATCHED, "missed": _MISSED, "false": _FALSE}
    for name, colour in colours.items():
        effects = _rim(3)
        figure.axes[0].plot(
            [], [], color=colour, lw=3, label=name, path_effects=effects
        )
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=12)
    _save(figure, path, dpi=150)


def _draw_panel(row: Sequence[Axes], panel: NucleiPanel) -> None:
    table = overlap_table(panel.true_labels, panel.pred_labels)
    pairs = match_nuclei(table, threshold=0.5)
    found = np.isin(np.arange(table.true_ids.size), table.rows[pairs])
    right = np.isin(np.arange(table.pred_ids.size), table.columns[pairs])
    titles = (
        panel.title,
        f"truth: {found.size} nuclei, {np.sum(~found)} missed",
        f"prediction: {right.size} nuclei, {np.sum(~right)} false",
    )
    for axes, title in zip(row, titles, strict=True):
        _show(axes, outputs.stretch_contrast(panel.image), title, fontsize=12)
    _outline(row[1], panel.true_labels, found, _MISSED)
    _outline(row[2], panel.pred_labels, right, _FALSE)


def _outline(
    axes: Axes, label_image: np.ndarray, matched: np.ndarray, error_colour: str
) -> None:
    """Outlines nuclei by whether they match; `matched` is in the order of the ids."""
    outlines = list(_trace_outlines(label_image))
    width = _line_width(label_image)
    styles = ((matched, _MATCHED, width), (~matched, error_colour, 1.6 * width))
    for chosen, colour, lw in styles:
        lines = [line for i in np.flatnonzero(chosen) for line in outlines[i]]
        collection = LineCollection(
            lines, colors=colour, lw=lw, joinstyle="round", path_effects=_rim(lw)
        )
        axes.add_collection(collection, autolim=False)


def _line_width(label_image: np.ndarray) -> float:
    """A width, in points, that leaves the inside of small nuclei to be seen."""
    height, width = label_image.shape
    points_per_pixel = 72 * _COLUMN_INCHES / max(width, height / _TALLEST)
    _, areas = np.unique(label_image[label_image > 0], return_counts=True)
    diameter = np.sqrt(np.median(areas)) if areas.size else 0.0
    return float(np.clip(0.1 * diameter * points_per_pixel, 0.6, 1.4))


def _trace_outlines(label_image: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Yields each nucleus' outlines, x and y [n, 2] in pixels, in the order of ids."""
    ids = np.unique(label_image[label_image > 0])
    index = np.searchsorted(ids, label_image) + 1
    index[label_image == 0] = 0
    for number, place in enumerate(scipy.ndimage.find_objects(index), start=1):
        inside = np.pad(index[place] == number, 1).astype(float)
        origin = [place[1].start - 1, place[0].start - 1]
        # A little inside the nucleus, so that touching ones get a line each.
        contours = skimage.measure.find_contours(inside, 0.7)
        yield [contour[:, ::-1] + origin for contour in contours]


def _rim(width: float) -> list[matplotlib.patheffects.AbstractPathEffect]:
    """A dark edge around lines, for contrast on bright images."""
    rim = matplotlib.patheffects.Stroke(
        linewidth=1.6 * width, foreground="black", alpha=0.6
    )
    return [rim, matplotlib.patheffects.Normal()]


def draw_average_precision(
    curves: Mapping[str, Sequence[float]], path: str | os.PathLike
) -> None:
    """Draws instance AP against the IoU that a match must exceed.

    Args:
      curves: Name -> AP at each of `instance_metrics.THRESHOLDS`. The first is drawn
        in black, the others in colours.
      path: The picture to write.
    """
    figure = Figure(figsize=(8.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, ap) in enumerate(curves.items()):
        colour = _GROUP_COLOURS[(index - 1) % len(_GROUP_COLOURS)]
        style = {"color": colour, "lw": 1.5} if index else {"color": "black", "lw": 2.5}
        label = _printable(f"{np.mean(ap):.3f}  {name}")
        axes.plot(THRESHOLDS, ap, marker="o", ms=4, label=label, **style)
    axes.set(
        xlabel="IoU that a match must exceed",
        ylabel="instance AP = TP / (TP + FP + FN)",
        xticks=THRESHOLDS,
        xlim=(0.49, 0.96),
        ylim=(0, 1.02),
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        loc="outside right upper", frameon=False, title="mean AP", alignment="left"
    )
    _save(figure, path, dpi=150)


def draw_heads(
    heads: Mapping[str, Mapping[str, float]], path: str | os.PathLike
) -> None:
    """Draws accuracy against time of the heads of a network.

    Args:
      heads: Label -> row with "s_per_image" and "iou", the fastest first.
      path: PNG file to write.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    times = [1000 * row["s_per_image"] for row in heads.values()]
    ious = [row["iou"] for row in heads.values()]
    axes.plot(times, ious, "o", color=_VAL_COLOUR)
    # The last one's stands beside it: above, the one before may be too near.
    offsets = [(-12, 8)] * (len(heads) - 1) + [(8, -4)]
    for label, x, y, offset in zip(heads, times, ious, offsets, strict=True):
        axes.annotate(label, (x, y), offset, textcoords="offset points")
    axes.set(xlabel="time of an image of 256 × 256 pixels, ms", ylabel="pixel IoU")
    axes.set_xlim(0, 1.15 * max(times))
    axes.margins(y=0.2)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_errors(
    image: np.ndarray, mask: np.ndarray, foreground: np.ndarray
) -> np.ndarray:
    """Tints the pixels that are wrong and outlines the prediction; uint8 [H, W, 3]."""
    picture = outputs.stretch_contrast(image) * 255
    errors = {
        "false positive": foreground & ~mask,
        "false negative": mask & ~foreground,
    }
    for name, pixels in errors.items():
        picture[pixels] = 0.35 * picture[pixels] + 0.65 * np.array(_ERROR_COLOURS[name])
    outlines = skimage.segmentation.find_boundaries(foreground, mode="inner")
    picture[outlines] = outputs.OUTLINE_COLOUR
    return picture.astype(np.uint8)


def _show(axes: Axes, picture: np.ndarray, title: str, *, fontsize: float = 10) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    axes.set_title(_printable(title), fontsize=fontsize)
    axes.set(xticks=[], yticks=[])


def _printable(text: str) -> str:
    """Writes names as they are: Matplotlib sets what lies between $ as formulas.

    Bytes of a file's name that are not UTF-8 become question marks.
    """
    known = text.encode(errors="surrogateescape").decode(errors="replace")
    return known.replace("$", r"\$")


def _save(figure: Figure, path: str | os.PathLike, *, dpi: int = 120) -> None:
    with replacing(pathlib.Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
