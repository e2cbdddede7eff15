"""How the axes of a series lie in its pages, and how a picture is read from them."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib

import numpy as np
import tifffile

from nucseg_jax.data import errors
from nucseg_jax.data.formats.stacks import ReadPicture, settle_axes, squeeze
from nucseg_jax.data.formats.tiff_colours import Convert
from nucseg_jax.data.formats.tiff_pages import Pages


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of a series.

    Attributes:
      stored: Letters as the file gives them.
      axes: Letters of what they are.
      lengths: Of the axes.
      page: Letters of the last of them, which lie within a page, as pages give them;
        the others count pages.
    """

    stored: str
    axes: str
    lengths: tuple[int, ...]
    page: str

    @property
    def num_outer(self) -> int:
        """How many axes count pages."""
        return len(self.axes) - len(self.page)

    @property
    def within(self) -> str:
        """Letters of what the axes within a page are."""
        return self.axes[self.num_outer :]

    @property
    def is_by_page(self) -> bool:
        """Whether rows and columns of a picture are those of its pages."""
        return self.page.replace("C", "S") == self.within.replace("C", "S")

    @property
    def has_samples(self) -> bool:
        """Whether samples of pages are what pages say: colours, transparency.

        Three or four pictures or channels, one behind the other, are often written as
        the samples of one page; then only the axes of the series tell.
        """
        told = zip(self.page, self.stored[self.num_outer :], self.within, strict=True)
        return all(
            stored != "C" and axis in "CS"
            for letter, stored, axis in told
            if letter == "S"
        )

    @property
    def num_outer_channels(self) -> int:
        """Number of pages that make up a picture."""
        pairs = zip(self.axes[: self.num_outer], self.lengths, strict=False)
        return math.prod(length for axis, length in pairs if axis in "CS")

    def length(self, letters: str) -> int:
        """Product of the lengths of axes."""
        pairs = zip(self.axes, self.lengths, strict=True)
        return math.prod(length for axis, length in pairs if axis in letters)


def find_layout(
    path: pathlib.Path, series: tifffile.TiffPageSeries, answer: str | None
) -> Layout:
    """Finds out what the axes of a series are.

    Args:
      path: The file.
      series: Of its pages.
      answer: What the user says of the axes.

    Raises:
      ImageError: If they are unknown.
    """
    stored, lengths = squeeze(series.axes, series.shape)
    inner, inner_lengths = squeeze(series.keyframe.axes, series.keyframe.shape)
    if lengths[-len(inner) :] != inner_lengths:
        raise ValueError(f"pages of {inner_lengths} do not make up {lengths}")
    axes = settle_axes(path, stored, lengths, answer)
    return Layout(stored, axes, lengths, inner)


def make_read(
    path: pathlib.Path,
    layout: Layout,
    pages: Pages,
    convert: Convert,
    *,
    max_pixels: int,
) -> ReadPicture:
    """Makes the function that reads a picture as it is stored.

    Args:
      path: The file.
      layout: Of its axes.
      pages: In the order of the axes.
      convert: Samples to channels.
      max_pixels: Limit on what has to be decoded at once.

    Raises:
      ImageError: If more pixels than that have to be decoded at once.
    """
    if layout.is_by_page:
        return _read_by_page(layout, pages, convert)
    errors.check_size(
        path, math.prod(layout.lengths) // layout.length("CS"), max_pixels
    )
    return _read_whole(layout, pages, convert)


def _read_by_page(layout: Layout, pages: Pages, convert: Convert) -> ReadPicture:
    outer = layout.axes[: layout.num_outer].replace("S", "C")
    numbers = np.arange(pages.count).reshape(layout.lengths[: layout.num_outer])
    if "C" in outer:
        numbers = np.moveaxis(numbers, outer.index("C"), -1)
    else:
        numbers = numbers[..., np.newaxis]

    def read(index: tuple[int, ...], rows: slice, columns: slice) -> np.ndarray:
        parts = [convert(pages.read(int(n), rows, columns)) for n in numbers[index]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    return read


def _read_whole(layout: Layout, pages: Pages, convert: Convert) -> ReadPicture:
    """Reads pictures whose rows are not the pages' rows.

    Such as channels that lie last and were saved as if they were columns. All pages are
    decoded at the first need.
    """
    letters = [
        *(axis for axis in layout.axes if axis not in "YXCS"),
        *"YX",
        *(axis for axis in layout.axes if axis in "CS"),
    ]
    order = [layout.axes.index(axis) for axis in letters]
    samples_first = layout.page[0] in "CS"

    @functools.lru_cache(maxsize=1)
    def load() -> np.ndarray:
        everything = slice(0, pages.height), slice(0, pages.width)
        decoded = [convert(pages.read(n, *everything)) for n in range(pages.count)]
        if samples_first:
            decoded = [np.moveaxis(page, -1, 0) for page in decoded]
        return np.stack(decoded).reshape(layout.lengths).transpose(order)

    def read(index: tuple[int, ...], rows: slice, columns: slice) -> np.ndarray:
        region = load()[index][rows, columns]
        return region.reshape(*region.shape[:2], -1).copy()

    return read
