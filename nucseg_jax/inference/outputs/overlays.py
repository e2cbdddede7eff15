"""Outlines and ids over the image: the picture to check a segmentation by."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from nucseg_jax.data.preprocessing import contrast_table, histogram, map_values
from nucseg_jax.inference import shapes
from nucseg_jax.inference.outputs import pictures
from nucseg_jax.inference.outputs.rows import RowBlocks
from nucseg_jax.inference.outputs.writer import Writer
from nucseg_jax.inference.streams import Band

# Longest sides in pixels. Smaller images are enlarged to about 2,000, at most 4 times,
# so that ids can be read; larger ones are reduced so that any program can open them.
SMALL, LARGEST, MOST_ENLARGED = 2048, 4000, 4
THUMBNAIL = 240
_FONT_SIZES = (16, 13, 11, 9)
# Share of a nucleus's diameter that its id may take.
_TEXT_SHARE = 0.9
# The second kind only in builds of Pillow without FreeType.
Font = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont
_TINT = 0.45


def draw_overlay(picture: np.ndarray, label_image: np.ndarray) -> np.ndarray:
    """Draws outlines, and ids where there is room for them.

    Args:
      picture: uint8 [H, W, 3], which is stretched to its own contrast.
      label_image: int32 [H, W].

    Returns:
      uint8 [z H, z W, 3], where z enlarges small images.
    """
    zoom = min(max(1, round(SMALL / max(picture.shape[:2]))), MOST_ENLARGED)
    labels, canvas = label_image, stretch(picture)
    if zoom > 1:
        labels = labels.repeat(zoom, axis=0).repeat(zoom, axis=1)
        size = labels.shape[::-1]
        canvas = cv2.resize(canvas, size, interpolation=cv2.INTER_CUBIC)
    canvas[find_outlines(labels, width=min(zoom, 2))] = pictures.OUTLINE_COLOUR
    return _draw_ids(canvas, labels)


def draw_thumbnail(picture: np.ndarray, label_image: np.ndarray) -> np.ndarray:
    """Tints nuclei, whose outlines a small picture cannot show; uint8 [H, W, 3]."""
    tinted = stretch(picture).astype(np.float32)
    inside = label_image > 0
    tint = np.array(pictures.OUTLINE_COLOUR, np.float32)
    tinted[inside] = (1 - _TINT) * tinted[inside] + _TINT * tint
    return tinted.round().astype(np.uint8)


def stretch(picture: np.ndarray) -> np.ndarray:
    """Stretches uint8 [H, W, 3] as `pictures.stretch_contrast` does."""
    if not picture.size:
        return picture
    table = contrast_table(histogram(picture), "stretch")
    return map_values(picture, table)


def find_outlines(label_image: np.ndarray, *, width: int = 1) -> np.ndarray:
    """Finds the pixels of nuclei within `width` of another label; bool [H, W]."""
    differs = np.zeros(label_image.shape, np.uint8)
    for axis in (0, 1):
        labels, marks = (np.moveaxis(a, axis, 0) for a in (label_image, differs))
        changes = labels[1:] != labels[:-1]
        marks[1:] |= changes
        marks[:-1] |= changes
    if width > 1:
        side = 2 * width - 1
        differs = cv2.dilate(differs, np.ones((side, side), np.uint8))
    return (differs > 0) & (label_image > 0)


def _draw_ids(canvas: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Writes each id at its nucleus's center, in the largest letters that fit."""
    runs = shapes.find_runs(labels)
    if not len(runs.ids):
        return canvas
    moments = shapes.compute_moments(runs)
    diameters = np.sqrt(4 / np.pi * moments.area)
    image = PIL.Image.fromarray(canvas)
    draw = PIL.ImageDraw.Draw(image)
    for label, y, x, diameter in zip(
        runs.ids.tolist(), moments.y, moments.x, diameters, strict=True
    ):
        # The center of a crescent may lie in its neighbour.
        if labels[round(y), round(x)] == label:
            for font, needed in _fonts(len(str(label))):
                if needed <= _TEXT_SHARE * diameter:
                    _write(draw, str(label), font, (x, y), canvas.shape[1::-1])
                    break
    return np.asarray(image)


@functools.cache
def _fonts(num_digits: int) -> list[tuple[Font, float]]:
    """Fonts, largest first, and the circle that so many digits need in each."""
    found = []
    for size in _FONT_SIZES:
        font = PIL.ImageFont.load_default(size)
        left, top, right, bottom = font.getbbox("0" * num_digits)
        found.append((font, math.hypot(right - left, bottom - top)))
    return found


def _write(
    draw: PIL.ImageDraw.ImageDraw,
    text: str,
    font: Font,
    center: tuple[float, float],
    size: tuple[int, int],
) -> None:
    """Writes in white with a dark rim, which can be read on any image.

    A text that would be cut off by the image's edge is moved inside.
    """
    left, top, right, bottom = draw.textbbox(
        (0, 0), text, font=font, anchor="mm", stroke_width=1
    )
    x = min(max(center[0], -left), size[0] - right)
    y = min(max(center[1], -top), size[1] - bottom)
    draw.text(
        (x, y),
        text,
        fill=(255, 255, 255),
        font=font,
        anchor="mm",
        stroke_width=1,
        stroke_fill=(0, 0, 0),
    )


class _ReducedWriter(Writer):
    """Gathers the picture and the labels, reduced by a whole number to fit a size."""

    needs_bands = True
    longest_side = LARGEST

    def _open(self) -> None:
        height, width = self.info.height, self.info.width
        self._factor = -(-max(height, width, 1) // self.longest_side)
        # Blocks of whole reduced rows, large enough to be worth a call.
        self._pictures, self._labels = (
            RowBlocks(self._factor * max(1, 256 // self._factor)) for _ in range(2)
        )
        shape = (-(-height // self._factor), -(-width // self._factor))
        self._reduced = np.empty((*shape, 3), np.uint8), np.empty(shape, np.int32)
        self._done = 0

    def _add_band(self, band: Band) -> None:
        self._fill(self._pictures.push(band.picture), self._labels.push(band.labels))

    def _gather(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture, uint8 [h, w, 3], and the labels, int32 [h, w]."""
        self._fill(self._pictures.rest(), self._labels.rest())
        return self._reduced

    def _fill(
        self, pictures_: Iterator[np.ndarray], labels: Iterator[np.ndarray]
    ) -> None:
        for block in zip(pictures_, labels, strict=True):
            reduced = self._reduce(*block)
            rows = slice(self._done, self._done + len(reduced[0]))
            for whole, part in zip(self._reduced, reduced, strict=True):
                whole[rows] = part
            self._done = rows.stop

    def _reduce(
        self, picture: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means of the picture, and the label in the middle of each square."""
        factor = self._factor
        if factor == 1:
            return picture, labels
        height, width = (-(-n // factor) for n in labels.shape)
        rows, columns = (
            np.minimum(np.arange(n) * factor + factor // 2, side - 1)
            for n, side in zip((height, width), labels.shape, strict=True)
        )
        mean = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        return mean, labels[rows[:, None], columns]


class OverlayWriter(_ReducedWriter):
    """Writes the overlay as PNG."""

    def _complete(self) -> None:
        overlay = draw_overlay(*self._gather())
        # A third of the time of the default for a tenth more bytes.
        pictures.save_png(self._temporary, overlay, compress_level=1)


class ThumbnailWriter(_ReducedWriter):
    """Writes a small JPEG with tinted nuclei."""

    longest_side = THUMBNAIL

    def _complete(self) -> None:
        image = PIL.Image.fromarray(draw_thumbnail(*self._gather()))
        image.save(self._temporary, format="JPEG", quality=85)
