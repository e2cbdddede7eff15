"""Pictures of a run: training curves, and predictions beside the truth.

Figures are drawn without pyplot, which keeps state for the whole process.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import skimage.segmentation
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nucseg_jax.inference import outputs

_CURVES = {
    "loss": "loss (BCE + Dice)",
    "accuracy": "pixel accuracy",
    "iou": "pixel IoU",
    "auc": "pixel AUC",
}
_TRAIN_COLOUR, _VAL_COLOUR = "#7f7f7f", "#d95f02"
# Blue and orange can be told apart with every kind of colour vision.
_ERROR_COLOURS = {"false positive": (255, 127, 14), "false negative": (31, 119, 255)}


def draw_curves(rows: Sequence[Mapping[str, float]], path: str | os.PathLike) -> None:
    """Draws training and validation curves of `history.read_history`'s rows."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    epochs = [row["epoch"] + 1 for row in rows]
    for axes, (name, title) in zip(
        figure.subplots(2, 2).ravel(), _CURVES.items(), strict=True
    ):
        train = [row[f"train_{name}"] for row in rows]
        val = [row[f"val_{name}"] for row in rows]
        axes.plot(
            epochs, train, color=_TRAIN_COLOUR, marker="o", ms=3, label="training"
        )
        axes.plot(epochs, val, color=_VAL_COLOUR, marker="o", ms=3, label="validation")
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
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
        row[0].set_ylabel(title, fontsize=10)
    names = {"outline of prediction": outputs.OUTLINE_COLOUR} | _ERROR_COLOURS
    for name, colour in names.items():
        figure.axes[0].plot([], [], color=np.divide(colour, 255), lw=5, label=name)
    figure.legend(loc="outside lower right", ncols=3, frameon=False)
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


def _show(axes: Axes, picture: np.ndarray, title: str) -> None:
    axes.imshow(picture, cmap="gray", interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set(xticks=[], yticks=[])


def _save(figure: Figure, path: str | os.PathLike) -> None:
    with outputs.replacing(pathlib.Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
