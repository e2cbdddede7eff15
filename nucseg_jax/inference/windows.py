"""Rows of probabilities -> nuclei with ids unique over the image, in bounded memory.

The image is decoded in windows that overlap by twice the halo. A nucleus that a window
cuts off is left to a later window that holds all of it; one that was found before is
not found again. So a nucleus across the corner of four windows is one nucleus. Only a
nucleus that no window can hold is parted: one wider or higher than the halo may be, one
of twice the halo will be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from nucseg_jax.inference.streams import BAND_ROWS


@dataclasses.dataclass(frozen=True)
class Found:
    """The nuclei newly found in a window.

    Attributes:
      rows: Of the image.
      columns: Of the image.
      labels: int32 [h, w], 0 = background or a nucleus of another window.
      probs: float32 [h, w, T].
    """

    rows: slice
    columns: slice
    labels: np.ndarray
    probs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Settled:
    """Rows of the image to which no nucleus will be added.

    Attributes:
      top: First row.
      labels: int32 [h, W].
      probs: float32 [h, W, T].
    """

    top: int
    labels: np.ndarray
    probs: np.ndarray


def find_nuclei(
    bands: Iterable[np.ndarray],
    shape: tuple[int, int],
    decode: Callable[[np.ndarray], np.ndarray],
    *,
    core: tuple[int, int],
    halo: int,
) -> Iterator[Found | Settled]:
    """Decodes rows of probabilities as they come.

    Args:
      bands: float32 [rows, W, T], from top to bottom, H rows in all.
      shape: H and W of the image.
      decode: Probabilities [h, w, T] to labels int32 [h, w].
      core: Height and width of a window without its halo, pixels. All rows that a
        window's height spans are in memory, whatever its width.
      halo: Pixels around it; half the size of the largest nucleus.

    Yields:
      `Found` for every window, and `Settled` rows after those windows that touch
      them; both from top to bottom.
    """
    height, width = shape
    core_height, core_width = core
    canvas = _Canvas(width, capacity=core_height + 2 * halo + BAND_ROWS)
    pieces = _cut_rows(bands)
    for first in range(0, height, core_height):
        last = min(first + core_height, height)
        is_lowest = last == height
        below = height if is_lowest else min(last + halo, height)
        while canvas.bottom < below:
            canvas.extend(next(pieces))
        rows = slice(max(first - halo, 0), below)
        for columns in _columns(width, core_width, halo):
            yield canvas.find(rows, columns, height, decode, halo)
        yield from canvas.settle(height if is_lowest else last - halo)


def claim(
    labels: np.ndarray,
    known: np.ndarray,
    cut_sides: Iterable[np.ndarray],
    *,
    overlap: int,
) -> np.ndarray:
    """Keeps those nuclei of a window that are new and whole.

    Args:
      labels: int32 [h, w], 0 = background, 1..n = nuclei.
      known: [h, w], above 0 where a nucleus was found before.
      cut_sides: `labels` turned so that its last row is one where the window ends and
        the image does not; once for each such side that other windows lie beyond.
      overlap: Pixels that those windows have in common with this one.

    Returns:
      int32 [h, w], the nuclei kept, numbered from 1; 0 where one is known.
    """
    is_new = _uncovered(labels, known)
    for side in cut_sides:
        is_new[_cut_off(side, overlap)] = False
    is_new[0] = False
    ids = np.where(is_new, np.cumsum(is_new), 0)
    return np.where(known > 0, 0, ids[labels]).astype(np.int32)


def _cut_rows(bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for band in bands:
        for top in range(0, len(band), BAND_ROWS):
            yield band[top : top + BAND_ROWS]


def _columns(width: int, core: int, halo: int) -> Iterator[slice]:
    for first in range(0, width, core):
        last = min(first + core, width)
        yield slice(max(first - halo, 0), min(last + halo, width))


class _Canvas:
    """The rows of the image that are neither settled nor still to come.

    Its memory is taken once: rows move up in it as others are settled.
    """

    def __init__(self, width: int, *, capacity: int):
        self._width = width
        self._top = 0
        self._count = 0
        self._labels = np.zeros((capacity, width), np.int32)
        self._probs = np.zeros((capacity, width, 0), np.float32)
        self._num_nuclei = 0

    @property
    def bottom(self) -> int:
        """The first row that has not come yet."""
        return self._top + self._count

    def extend(self, probs: np.ndarray) -> None:
        """Adds the next rows."""
        if probs.shape[-1] != self._probs.shape[-1]:
            shape = (*self._labels.shape, probs.shape[-1])
            self._probs = np.empty(shape, np.float32)
        self._probs[self._count : self._count + len(probs)] = probs
        self._count += len(probs)

    def find(
        self,
        rows: slice,
        columns: slice,
        height: int,
        decode: Callable[[np.ndarray], np.ndarray],
        halo: int,
    ) -> Found:
        """Decodes one window and keeps what is new and whole."""
        here = (slice(rows.start - self._top, rows.stop - self._top), columns)
        probs, known = self._probs[here], self._labels[here]
        labels = decode(probs)
        cut_sides = [labels] if rows.stop < height else []
        if columns.stop < self._width:
            cut_sides.append(labels.T)
        added = claim(labels, known, cut_sides, overlap=2 * halo)
        added[added > 0] += self._num_nuclei
        self._num_nuclei = max(self._num_nuclei, int(added.max(initial=0)))
        known += added
        # A copy: the rows will move.
        return Found(rows, columns, added, probs.copy())

    def settle(self, until: int) -> Iterator[Settled]:
        """Gives away the rows above `until`, a few at a time."""
        settled = max(until - self._top, 0)
        for first in range(0, settled, BAND_ROWS):
            rows = slice(first, min(first + BAND_ROWS, settled))
            yield Settled(
                self._top + first, self._labels[rows].copy(), self._probs[rows].copy()
            )
        kept = self._count - settled
        self._labels[:kept] = self._labels[settled : self._count]
        self._labels[kept:] = 0
        self._probs[:kept] = self._probs[settled : self._count]
        self._top, self._count = self._top + settled, kept


def _uncovered(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Tells which labels lie mostly where nothing was found before: bool [n + 1]."""
    size = int(labels.max(initial=0)) + 1
    areas = np.bincount(labels.ravel(), minlength=size)
    covered = np.bincount(labels[known > 0], minlength=size)
    return 2 * covered < areas


def _cut_off(labels: np.ndarray, overlap: int) -> np.ndarray:
    """Labels in the last row that a window of the last `overlap` rows would hold."""
    cut = np.unique(labels[-1])
    if len(labels) <= overlap:
        return cut
    # A nucleus is connected: one that begins above the overlap crosses this row.
    return np.setdiff1d(cut, labels[-overlap - 1])
