"""Prepared images of any size -> probabilities, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from nucseg_jax.data import preprocessing
from nucseg_jax.inference import tiling
from nucseg_jax.inference.predictor import PredictFn
from nucseg_jax.inference.read_ahead import read_ahead
from nucseg_jax.inference.scaling import ReadRegion
from nucseg_jax.network.unet_plus_plus import Interior

# Images of many sizes share few compiled shapes: sizes are rounded up to this.
_SIZE_STEP = 64
_MANY_TILES = 16
# Interpolation at another magnification looks this far, pixels.
_RIM = 2
# Predicted while a row of windows is decoded.
_TILES_AHEAD = 4

# Takes the number of tiles that are predicted, and of all tiles of the image.
TellTiles = Callable[[int, int], None]


def tell_nobody(done: int, total: int) -> None:
    """Tells nobody."""


class TilePredictor:
    """Predicts images of any size in tiles that memory has room for.

    It keeps no state between images, so threads may share it.
    """

    def __init__(
        self,
        predict_fn: PredictFn,
        *,
        depth: int,
        features: int,
        num_targets: int,
        tile: int | None = None,
        undivided: bool = False,
    ):
        """Wraps a prediction function.

        Args:
          predict_fn: From `make_predict_fn`.
          depth: Levels of the network, which say how far it looks.
          features: Its channels at full resolution, which say how much memory a tile
            takes.
          num_targets: Of its probabilities.
          tile: Side of the largest tile, pixels, a multiple of 64; None = as large as
            memory allows, see `tiling.largest_tile`.
          undivided: Whether an image is one tile, however large.

        Raises:
          ValueError: If there is no tile of that size.
        """
        if tile is not None and (tile <= 0 or tile % _SIZE_STEP):
            raise ValueError(
                f"tile is {tile}; it must be a positive multiple of {_SIZE_STEP} pixels"
            )
        self._predict_fn = predict_fn
        self._depth = depth
        self._multiple = 2 ** (depth - 1)
        self._features = features
        self._num_targets = num_targets
        self._tile = tile
        self._undivided = undivided

    def bands(
        self,
        read: ReadRegion,
        shape: tuple[int, int],
        tell_tiles: TellTiles = tell_nobody,
        *,
        width: int = 0,
    ) -> Iterator[np.ndarray]:
        """Predicts tile by tile: float32 [rows, W, T], from top to bottom.

        Args:
          read: Rows and columns to prepared uint8 [h, w, 3].
          shape: Height and width of the image.
          tell_tiles: Called before the first tile and after each.
          width: Of the image before it was scaled, which tells how much memory waiting
            rows take; 0 = it was not scaled.
        """
        grid = self._plan(shape, max(width, shape[1]))
        tiles = (self._predict_tile(read, shape, grid, place) for place in grid.tiles)
        told = _tell_each(_fetch_behind(tiles), len(grid.tiles), tell_tiles)
        for top, probs in tiling.stitch(grid, read_ahead(told, _TILES_AHEAD)):
            yield probs[: max(shape[0] - top, 0), : shape[1]]
            del probs  # They must not stay while the next ones are made.

    def seen(self, part: slice, length: int, longest: int, scale: float) -> slice:
        """Chooses what the network looks at to predict a part of an axis.

        It begins in step with pooling, and has the same size for all parts of an axis
        that is long enough.

        Args:
          part: Pixels of the image.
          length: Of the axis, pixels as the network sees them.
          longest: Pixels of the longest part.
          scale: Pixels as the network sees them a pixel of the image.
        """
        margin = tiling.reach(self._depth) + _RIM
        size = tiling.round_up(math.ceil(longest * scale) + 2 * margin, _SIZE_STEP)
        size += _SIZE_STEP
        first = (int(part.start * scale) - margin) // _SIZE_STEP * _SIZE_STEP
        start = max(min(first, tiling.round_up(length, _SIZE_STEP) - size), 0)
        return slice(start, min(start + size, length))

    def _plan(self, shape: tuple[int, int], width: int) -> tiling.Grid:
        """Places tiles, all of one size, and few sizes for images of many.

        The image goes on mirrored up to a round size. Tiles need cover no more of that
        than spoils the image.
        """
        tile = self._tile or tiling.largest_tile(
            width,
            features=self._features,
            depth=self._depth,
            num_targets=self._num_targets,
        )
        margin, multiple = tiling.decoder_reach(self._depth), self._multiple
        around = _SIZE_STEP
        if self._undivided:
            around = multiple
            step, largest = multiple, max(shape) + multiple
        elif shape[0] * shape[1] > _MANY_TILES * tile**2:
            # A size of its own is worth its compilation.
            step, largest = multiple, tile
        else:
            step, largest = _SIZE_STEP, tile
        ends = tiling.round_up(shape[0], around), tiling.round_up(shape[1], around)
        covered = [
            min(tiling.round_up(n + margin, multiple), end)
            for n, end in zip(shape, ends, strict=True)
        ]
        sides = [
            tiling.fit_tile(
                n, largest=largest, margin=margin, multiple=multiple, step=step
            )
            for n in covered
        ]
        return tiling.plan(
            covered[0],
            covered[1],
            tile=(sides[0], sides[1]),
            margin=margin,
            multiple=multiple,
            surround=tiling.encoder_surround(self._depth),
            ends=ends,
        )

    def _predict_tile(
        self,
        read: ReadRegion,
        shape: tuple[int, int],
        grid: tiling.Grid,
        place: tuple[int, int],
    ) -> jax.Array:
        """Reads, mirrors beyond the image's end, predicts: float32 [tile, tile, T]."""
        axes = (grid.rows, grid.columns)
        firsts = [axis.first_seen(p) for axis, p in zip(axes, place, strict=True)]
        sides = [axis.seen for axis in axes]
        region = [
            slice(first, min(first + n, end))
            for first, n, end in zip(firsts, sides, shape, strict=True)
        ]
        image_u8 = read(*region)
        missing = [n - have for n, have in zip(sides, image_u8.shape, strict=False)]
        padding = [(0, n) for n in missing] + [(0, 0)]
        padded = np.pad(image_u8, padding, mode="symmetric")
        images = jnp.asarray(preprocessing.to_float(padded)[None])
        if len(grid.tiles) == 1:
            return self._predict_fn(images)[0]
        top, left = (p - first for p, first in zip(place, firsts, strict=True))
        interior = Interior(top, left, grid.rows.tile, grid.columns.tile)
        return self._predict_fn(images, interior)[0]


def _fetch_behind(tiles: Iterator[jax.Array]) -> Iterator[np.ndarray]:
    """Fetches each tile after the next one was sent off, so that no device waits."""
    previous = None
    for tile in tiles:
        if previous is not None:
            yield np.asarray(previous)
        previous = tile
    if previous is not None:
        yield np.asarray(previous)


def _tell_each(
    tiles: Iterator[np.ndarray], total: int, tell_tiles: TellTiles
) -> Iterator[np.ndarray]:
    tell_tiles(0, total)
    for done, tile in enumerate(tiles, 1):
        tell_tiles(done, total)
        yield tile
