"""Tiles of one size over an image of any size, and their blended reassembly.

A tile is wrong near its edges, where the network lacks what lies beyond. For the
network's encoder, which looks farthest, what lies around a tile is read with it; its
decoder, most of the work, computes the tile alone. Tiles overlap by twice the decoder's
reach, and within that reach of an edge a tile weighs nothing: what is stitched equals
the prediction of the whole. Between two tiles the weight goes over smoothly.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np

# Sides of the largest tile, pixels, and what they are multiples of: below these, too
# much is seen around tiles to be worth the memory; above, nothing is gained.
_LARGEST_TILES = range(768, 1536 + 1, 64)
# Bytes that an image of any width may take where tiles can be that small; with all
# else in the process it stays below 2 GiB.
_MEMORY = 1300 << 20
# What of it grows with a tile: arrays of features at full resolution that the network
# has at once besides one for each level, and probabilities of tiles that wait.
_FURTHER_ARRAYS, _WAITING_TILES = 2, 5
# Rows of the whole width besides those of one row of tiles, each of probabilities and
# a label: those that wait for a window below, and those on their way to the writers.
_WAITING_ROWS = 1500
# Pixels over which the weight of a tile rises. Few, for they are computed twice, and
# two tiles hardly differ there.
_RAMP = 2


@dataclasses.dataclass(frozen=True)
class Axis:
    """Where tiles lie along one axis.

    Attributes:
      length: Of the image, pixels.
      tile: Of one tile, pixels; may exceed a short image.
      starts: First pixel of each tile, ascending; multiples of `plan_axis`'s multiple.
      margin: Pixels at an inner edge that weigh nothing.
      surround: Pixels beyond an inner edge that are read with a tile.
      end: Where what may be read ends, at the end of the last tile or beyond.
    """

    length: int
    tile: int
    starts: tuple[int, ...]
    margin: int
    surround: int
    end: int

    @property
    def seen(self) -> int:
        """Length of what is read for a tile, alike for all: pixels."""
        return min(self.tile + 2 * self.surround, self.end)

    def first_seen(self, start: int) -> int:
        """The first pixel that is read for the tile that begins at `start`."""
        return min(max(start - self.surround, 0), self.end - self.seen)

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """Weight of each pixel of each tile, float32 [tiles, tile].

        At every pixel of the image the weights of all tiles add up to one.
        """
        raw = np.stack([self._trapezoid(k) for k in range(len(self.starts))])
        total = np.zeros(self.starts[-1] + self.tile, np.float32)
        for start, weights in zip(self.starts, raw, strict=True):
            total[start : start + self.tile] += weights
        shares = [total[start : start + self.tile] for start in self.starts]
        return raw / np.stack(shares)

    def finished(self, k: int) -> int:
        """How many pixels are final once tiles 0 to k are blended."""
        if k + 1 == len(self.starts):
            return self.length
        return self.starts[k + 1] + self.margin

    def _trapezoid(self, k: int) -> np.ndarray:
        """One, but falling to zero before the margins of inner edges."""
        depth = np.arange(self.tile, dtype=np.float32) + 0.5 - self.margin
        from_start = depth if k else np.full_like(depth, _RAMP)
        is_last = k + 1 == len(self.starts)
        from_end = np.full_like(depth, _RAMP) if is_last else depth[::-1]
        return np.clip(np.minimum(from_start, from_end) / _RAMP, 0, 1)


def plan_axis(
    length: int,
    *,
    tile: int,
    margin: int,
    multiple: int,
    surround: int = 0,
    end: int = 0,
) -> Axis:
    """Places tiles along one axis.

    Args:
      length: Of the image, pixels, at least 1.
      tile: Length of a tile, a multiple of `multiple`.
      margin: Pixels at an inner edge that weigh nothing.
      multiple: Of what the starts must be: the network halves the resolution, and
        tiles must be halved in step with the whole.
      surround: Pixels to read beyond an inner edge, a multiple of `multiple`.
      end: Where what may be read ends, a multiple of `multiple`; where the last tile
        does if that is farther.

    Raises:
      ValueError: If tiles are too short to overlap.
    """
    whole = round_up(length, multiple)
    if whole <= tile:
        return Axis(length, tile, (0,), margin, surround, max(end, tile))
    stride = tile - _overlap(margin, multiple)
    if tile % multiple or stride <= 0:
        raise ValueError(
            f"tiles of {tile} pixels do not fit: they overlap by "
            f"{_overlap(margin, multiple)} and must be a multiple of {multiple}"
        )
    steps = -(-(whole - tile) // stride)
    # Evenly spread: no two tiles share more than they must.
    starts = [
        k * ((whole - tile) // multiple) // steps * multiple for k in range(steps)
    ]
    starts.append(whole - tile)
    return Axis(length, tile, tuple(starts), margin, surround, max(end, whole))


def round_up(length: int, step: int) -> int:
    """Returns the first multiple of `step` that is not less."""
    return -(-length // step) * step


def _overlap(margin: int, multiple: int) -> int:
    """Pixels that two tiles share at least, since both start at a multiple."""
    return round_up(2 * margin + _RAMP, multiple)


def fit_tile(
    length: int, *, largest: int, margin: int, multiple: int, step: int
) -> int:
    """Chooses the length of tiles that cover an axis with the least waste.

    Args:
      length: Of the axis, pixels.
      largest: Longest tile allowed, a multiple of `step`.
      margin: As in `plan_axis`.
      multiple: As in `plan_axis`.
      step: The result is a multiple of it.

    Returns:
      The shortest tile of which no more are needed than of the largest.
    """
    if length <= largest:
        return round_up(length, step)
    overlap = _overlap(margin, multiple)
    number = -(-(length - overlap) // max(largest - overlap, 1))
    needed = -(-(length + (number - 1) * overlap) // number)
    return min(round_up(needed, step), largest)


def largest_tile(width: int, *, features: int, depth: int, num_targets: int) -> int:
    """Chooses the side of the largest tile, so that memory stays bounded.

    Args:
      width: Of the image, pixels; a row of tiles spans it.
      features: Channels of the network at full resolution.
      depth: Its levels.
      num_targets: Channels of the probabilities.

    Returns:
      Pixels, a multiple of 64 from 768 to 1,536.
    """
    value = 4  # Bytes.
    per_row = width * (num_targets + 1) * value
    arrays = (depth + _FURTHER_ARRAYS) * features + _WAITING_TILES * num_targets
    per_pixel = arrays * value
    # The side of which per_pixel * side^2 + per_row * side is what is left.
    left = max(_MEMORY - _WAITING_ROWS * per_row, 0)
    side = (math.sqrt(per_row**2 + 4 * per_pixel * left) - per_row) / (2 * per_pixel)
    fitting = [tile for tile in _LARGEST_TILES if tile <= side]
    return max(fitting, default=_LARGEST_TILES[0])


@dataclasses.dataclass(frozen=True)
class Grid:
    """Tiles over an image; `tiles` are their (first row, first column), row by row."""

    rows: Axis
    columns: Axis

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """First row and column of every tile, in the order of `stitch`."""
        return list(itertools.product(self.rows.starts, self.columns.starts))


def plan(
    height: int,
    width: int,
    *,
    tile: tuple[int, int],
    margin: int,
    multiple: int,
    surround: int = 0,
    ends: tuple[int, int] = (0, 0),
) -> Grid:
    """Covers an image with tiles of one size; see `plan_axis`."""
    rows, columns = (
        plan_axis(
            n, tile=t, margin=margin, multiple=multiple, surround=surround, end=end
        )
        for n, t, end in zip((height, width), tile, ends, strict=True)
    )
    return Grid(rows, columns)


def stitch(grid: Grid, tiles: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """Blends tiles to rows of the whole width, as soon as these are settled.

    One row of tiles is in memory, and what the next one shares with it.

    Args:
      grid: Where the tiles lie.
      tiles: float32 [tile height, tile width, C], in the order of `grid.tiles`.

    Yields:
      First row, and float32 [rows, width, C]; from top to bottom without gaps, once a
      row of tiles. A caller that keeps one while asking for the next holds two.
    """
    tiles = iter(tiles)
    done = 0
    pending: np.ndarray | None = None
    for k, start in enumerate(grid.rows.starts):
        row = _blend_row(grid, k, tiles)
        if pending is not None:
            row[: len(pending)] += pending
        # The next row of tiles begins within this one.
        last = k + 1 == len(grid.rows.starts)
        pending = None if last else row[grid.rows.starts[k + 1] - start :].copy()
        finished = grid.rows.finished(k)
        yield done, row[done - start : finished - start, : grid.columns.length]
        del row
        done = finished


def _blend_row(grid: Grid, k: int, tiles: Iterator[np.ndarray]) -> np.ndarray:
    """Sums one row of tiles by their weights: [tile height, all columns, C]."""
    columns = grid.columns
    row: np.ndarray | None = None
    down = grid.rows.weights[k][:, None, None]
    for n, start in enumerate(columns.starts):
        tile = next(tiles)
        if row is None:
            width = columns.starts[-1] + columns.tile
            row = np.zeros((grid.rows.tile, width, tile.shape[-1]), np.float32)
        across = columns.weights[n][None, :, None]
        row[:, start : start + columns.tile] += tile * (down * across)
    assert row is not None
    return row


def reach(depth: int) -> int:
    """How far from a pixel the network of `depth` levels looks, pixels.

    On its way down and up it has two 3x3 convolutions at each level of the encoder and
    one at each level of the decoder, that of level i reaching 2^i. A cell of the lowest
    level lies up to 2^(depth - 1) - 1 pixels to one side of a pixel within it.
    """
    encoder = 2 * (2**depth - 1)
    return encoder + decoder_reach(depth) + 2 ** (depth - 1) - 1


def decoder_reach(depth: int) -> int:
    """How far from a pixel its decoder looks, in what the encoder made of the image."""
    return 2 ** (depth - 1) - 1


def encoder_surround(depth: int) -> int:
    """How much the encoder must see around a tile, pixels, to be right all over it.

    The tile begins in step with the lowest level. A 3x3 convolution spoils one cell at
    an edge where the image goes on, and pooling those that hold a spoilt one.
    """
    spoilt = 0
    for _ in range(depth):
        spoilt = -(-spoilt // 2) + 2
    return spoilt * 2 ** (depth - 1)
