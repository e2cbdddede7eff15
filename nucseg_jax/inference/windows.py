"""Rows of probabilities -> nuclei with ids unique over the image, in bounded memory.

The image is decoded in windows that overlap by twice the halo. A nucleus that a window
cuts off is left to another one that holds all of it; one that was found before is not
found again. So a nucleus across the corner of four windows is one nucleus. Only one
that no window may hold is cut: one larger than twice the halo, less the rim, can be.
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
    pieces: Iterable[np.ndarray],
    shape: tuple[int, int],
    decode: Callable[[np.ndarray], np.ndarray],
    *,
    core: tuple[int, int],
    halo: int,
    rim: int = 1,
) -> Iterator[Found | Settled]:
    """Decodes rows of probabilities as they come.

    Args:
      pieces: float32 [rows, W, T], from top to bottom, H rows in all. A window ends
        where a piece does, so that no part of one waits for the next.
      shape: H and W of the image.
      decode: Probabilities [h, w, T] to labels int32 [h, w].
      core: Least height of a window without its halo, pixels, and its width if it is
        as low as that; higher ones, of up to twice the height, are narrower.
      halo: Pixels around it; nuclei of up to twice that, less the rim, stay whole.
      rim: Pixels of a window, at a side beyond which the image goes on, in which
        nuclei may be decoded otherwise than in the whole image; at most half the halo.

    Yields:
      `Found` for every window, and `Settled` rows after those windows that touch
      them; both from top to bottom.
    """
    height, width = shape
    core_height, core_width = core
    canvas = _Canvas(width)
    parts = _cut(pieces, core_height)
    while canvas.bottom < height:
        canvas.extend(next(parts))
        is_lowest = canvas.bottom == height
        if canvas.num_new < core_height and not is_lowest:
            continue
        narrow = max(core_height * core_width // max(canvas.num_new, core_height), 1)
        for columns in _columns(width, narrow, halo):
            yield canvas.find(columns, decode, halo, shape, rim)
        yield from canvas.settle(keep=0 if is_lowest else 2 * halo)


def claim(
    labels: np.ndarray,
    known: np.ndarray,
    region: tuple[slice, slice],
    shape: tuple[int, int],
    *,
    overlap: int,
    rim: int = 1,
) -> np.ndarray:
    """Keeps those nuclei of a window that are new and whole.

    Args:
      labels: int32 [h, w], 0 = background, 1..n = nuclei.
      known: [h, w], above 0 where a nucleus was found before.
      region: Rows and columns of the window in the image.
      shape: H and W of the image.
      overlap: Pixels that neighbouring windows have in common.
      rim: See `find_nuclei`.

    Returns:
      int32 [h, w], the nuclei kept, numbered from 1; 0 where one is known.
    """
    is_new = _uncovered(labels, known)
    for side in _cut_sides(labels, region, shape):
        is_new &= ~_cut_off(side, len(is_new), overlap, rim)
    is_new[0] = False
    ids = np.where(is_new, np.cumsum(is_new), 0)
    return np.where(known > 0, 0, ids[labels]).astype(np.int32)


def _cut(pieces: Iterable[np.ndarray], height: int) -> Iterator[np.ndarray]:
    """Cuts pieces of twice the height and more."""
    for piece in pieces:
        yield from np.array_split(piece, max(len(piece) // height, 1))
        del piece  # It must not stay while the next is made.


def _columns(width: int, core: int, halo: int) -> Iterator[slice]:
    for first in range(0, width, core):
        last = min(first + core, width)
        yield slice(max(first - halo, 0), min(last + halo, width))


class _Canvas:
    """The rows of the image that are neither settled nor still to come.

    These are the rows of the windows that are decoded next.

    Attributes:
      num_new: Rows that no window has held yet.
    """

    def __init__(self, width: int):
        self._top = 0
        self._pieces: list[np.ndarray] = []
        self._labels = np.zeros((0, width), np.int32)
        self._num_nuclei = 0
        self.num_new = 0

    @property
    def bottom(self) -> int:
        """The first row that has not come yet."""
        return self._top + sum(map(len, self._pieces))

    def extend(self, probs: np.ndarray) -> None:
        """Adds the next rows, without a copy."""
        self._pieces.append(probs)
        self.num_new += len(probs)

    def find(
        self,
        columns: slice,
        decode: Callable[[np.ndarray], np.ndarray],
        halo: int,
        shape: tuple[int, int],
        rim: int,
    ) -> Found:
        """Decodes one window, of all rows, and keeps what is new and whole."""
        probs = np.concatenate([piece[:, columns] for piece in self._pieces])
        known = self._all_labels()[:, columns]
        region = slice(self._top, self.bottom), columns
        added = claim(decode(probs), known, region, shape, overlap=2 * halo, rim=rim)
        added[added > 0] += self._num_nuclei
        self._num_nuclei = max(self._num_nuclei, int(added.max(initial=0)))
        known += added
        return Found(*region, added, probs)

    def settle(self, keep: int) -> Iterator[Settled]:
        """Gives away all rows but the last ones, a few at a time."""
        count = self.bottom - self._top
        settled = max(count - keep, 0)
        for first in range(0, settled, BAND_ROWS):
            last = min(first + BAND_ROWS, settled)
            # A copy, too: who keeps a few rows must not keep them all.
            labels = self._labels[first:last].copy()
            probs = _take_rows(self._pieces, first, last)
            yield Settled(self._top + first, labels, probs)
        self._pieces = [_take_rows(self._pieces, settled, count)]
        self._labels = self._labels[settled:].copy()
        self._top, self.num_new = self._top + settled, 0

    def _all_labels(self) -> np.ndarray:
        """Those of all rows, int32; not of more before they are needed."""
        missing = self.bottom - self._top - len(self._labels)
        if missing:
            self._labels = np.pad(self._labels, [(0, missing), (0, 0)])
        return self._labels


def _take_rows(pieces: Iterable[np.ndarray], first: int, last: int) -> np.ndarray:
    """Copies rows of pieces that lie one below the other."""
    parts, top = [], 0
    for piece in pieces:
        parts.append(piece[max(first - top, 0) : max(last - top, 0)])
        top += len(piece)
    return np.concatenate(parts)


def _uncovered(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Tells which labels lie mostly where nothing was found before: bool [n + 1]."""
    size = int(labels.max(initial=0)) + 1
    areas = np.bincount(labels.ravel(), minlength=size)
    covered = np.bincount(labels[known > 0], minlength=size)
    return 2 * covered < areas


def _cut_sides(
    labels: np.ndarray, region: tuple[slice, slice], shape: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yields the labels once for each side where the window ends, but not the image.

    They are turned so that this side is their last row. Sides towards earlier windows
    count, too: of a nucleus that those left to a later one, this window may hold no
    more than a tip.
    """
    (rows, columns), (height, width) = region, shape
    if rows.start > 0:
        yield labels[::-1]
    if rows.stop < height:
        yield labels
    if columns.start > 0:
        yield labels.T[::-1]
    if columns.stop < width:
        yield labels.T


def _cut_off(labels: np.ndarray, size: int, overlap: int, rim: int) -> np.ndarray:
    """Tells which labels the end cuts, and the neighbouring window holds whole.

    It has the last `overlap` rows in common with this one. Of a nucleus that the last
    row cuts, what lies above may be a label of its own: so the last rows count, too.

    Returns:
      bool [size], for each label.
    """
    cut = _among(labels[-rim:], size)
    if len(labels) <= overlap:
        return cut
    # A nucleus is connected: one that the other window cuts off, too, crosses its rim.
    return cut & ~_among(labels[-overlap:][:rim], size)


def _among(labels: np.ndarray, size: int) -> np.ndarray:
    found = np.zeros(size, bool)
    found[labels] = True
    return found
