"""A trained network as one callable: image in, nuclei out.

Images of any size take one path: regions are read, prepared and predicted tile by
tile, and decoded window by window. What fits into one tile is one tile and one window.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from nucseg_jax import pretrained
from nucseg_jax.checkpoints import restore_for_inference
from nucseg_jax.config import Config, DataConfig, DecodingConfig, Dtype, Mode
from nucseg_jax.data import preprocessing
from nucseg_jax.data.errors import MAX_PIXELS, ImageError
from nucseg_jax.data.intensity import intensity_range
from nucseg_jax.data.planes import Plane
from nucseg_jax.inference import scaling, tiling, windows
from nucseg_jax.inference.contrast import (
    Contrast,
    colour_reader,
    count_values,
    make_contrast,
    normalized_reader,
)
from nucseg_jax.inference.instances import label_nuclei
from nucseg_jax.inference.measurements import measure_nuclei
from nucseg_jax.inference.overlap import read_ahead
from nucseg_jax.inference.predictor import PredictFn, make_predict_fn
from nucseg_jax.inference.streams import Band, Window
from nucseg_jax.network.unet_plus_plus import Interior, UNetPlusPlus, Variables

# Images of many sizes share few compiled shapes: sizes are rounded up to this.
_SIZE_STEP = 64
_MANY_TILES = 16
# Windows of decoding, in pixels of the training scale: low, because rows of the whole
# width are kept for them, and as wide as is worth their memory. The halo is twice the
# width of a large nucleus at 40x magnification.
_CORE = (768, 2048)
_HALO = 128
_ADVICE = "Take one trained with --framing=crop and --clahe_clip_limit=0"
# Interpolation at another magnification looks this far, pixels.
_RIM = 2

# Predicted while a row of windows is decoded.
_TILES_AHEAD = 4

# Takes the number of tiles that are predicted, and of all tiles of the image.
TellTiles = Callable[[int, int], None]


def _tell_nobody(done: int, total: int) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The nuclei of one image.

    Attributes:
      labels: int32 [H, W], 0 = background, 1..n = nuclei.
      probs: float32 [H, W, T], probabilities of each target.
      measurements: Columns of n values, see `measurements.measure_nuclei`;
        `pandas.DataFrame(measurements)` is a table of them.
    """

    labels: np.ndarray
    probs: np.ndarray
    measurements: dict[str, np.ndarray]


class Segmenter:
    """Finds the nuclei in images of any size, prepared as in training.

    It keeps no state between images, so threads may share it.
    """

    def __init__(
        self,
        predict_fn: PredictFn,
        config: DataConfig,
        *,
        decoding: DecodingConfig | None = None,
        depth: int = 5,
        features: int = 64,
        tile: int | None = None,
    ):
        """Wraps a prediction function.

        Args:
          predict_fn: From `make_predict_fn`.
          config: Of the training data: framing and preparation.
          decoding: How probabilities become nuclei; None = the defaults.
          depth: Levels of the network, which say how far it looks.
          features: Its channels at full resolution, which say how much memory a tile
            takes.
          tile: Side of the largest tile, pixels, a multiple of 64; None = as large as
            memory allows, see `tiling.largest_tile`.

        Raises:
          ValueError: If it is none.
        """
        if tile is not None and tile % _SIZE_STEP:
            raise ValueError(
                f"tile is {tile}; it must be a multiple of {_SIZE_STEP} pixels"
            )
        self._predict_fn = predict_fn
        self._config = config
        self._tile = tile
        self._features = features
        self._multiple = 2 ** (depth - 1)
        self._depth = depth
        self.decoding = decoding or DecodingConfig()

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the probabilities' channels."""
        return self._config.targets

    @property
    def normalization(self) -> str:
        """How the contrast is stretched, see `preprocessing.contrast_table`."""
        return self._config.normalization

    def choose_scale(self, pixel_size: float | None) -> float:
        """Scale that brings an image to the magnification of the training images.

        Args:
          pixel_size: Of the image, micrometres; None = unknown.

        Returns:
          1 where either pixel size is unknown, or where they differ by less than a
          tenth.
        """
        trained = self._config.pixel_size
        if not pixel_size or not trained or self._config.framing == "resize":
            return 1.0
        scale = pixel_size / trained
        return scale if not 0.9 < scale < 1.1 else 1.0

    def __call__(
        self,
        image: np.ndarray,
        *,
        channel: int | None = None,
        pixel_size: float | None = None,
        scale: float = 1.0,
    ) -> Segmentation:
        """Segments an array.

        Args:
          image: [H, W] or [H, W, C] of any real dtype. Three channels are red, green
            and blue.
          channel: The one channel to look at; needed unless there is one, or three.
          pixel_size: Micrometres a pixel, for the measurements' units.
          scale: Resize by this factor for the network, if the image was taken at
            another magnification than those it was trained on.

        Raises:
          ImageError: If the shape is another.
        """
        plane = _plane_of_array(np.asarray(image), channel, pixel_size)
        tables, bands = [], []
        for item in self.stream(plane, scale=scale):
            if isinstance(item, Band):
                bands.append(item)
            else:
                tables.append(_measure(item, plane))
        return Segmentation(
            labels=np.concatenate([band.labels for band in bands]),
            probs=np.concatenate([band.probs for band in bands]),
            measurements=_join_columns(tables),
        )

    def predict(
        self,
        image: np.ndarray,
        *,
        size: tuple[int, int] | None = None,
        tell_tiles: TellTiles = _tell_nobody,
    ) -> np.ndarray:
        """Predicts the probabilities of an image.

        Args:
          image: float32 [H, W, 3] in [0, 1].
          size: Height and width of the result; None = the image's own.
          tell_tiles: Called before the first tile and after each.

        Returns:
          float32 [*size, T].
        """
        read = _read_array(self._prepare(image))
        shape = self._network_shape(image.shape[:2])
        probs = np.concatenate(list(self._predict_bands(read, shape, tell_tiles)))
        return _resize_probs(probs, size or image.shape[:2])

    def decode(self, probs: np.ndarray, *, scale: float = 1.0) -> np.ndarray:
        """Turns probabilities float32 [H, W, T] to a label image int32 [H, W].

        Args:
          probs: At the image's own size.
          scale: By which the network saw the image resized.
        """
        return label_nuclei(probs, self.targets, _rescale(self.decoding, scale))

    def stream(
        self,
        plane: Plane,
        *,
        scale: float = 1.0,
        tell_tiles: TellTiles = _tell_nobody,
    ) -> Iterator[Window | Band]:
        """Segments a plane of any size in bounded memory.

        Args:
          plane: From `planes.open_planes`.
          scale: Resize by this factor for the network.
          tell_tiles: Called before the first tile and after each, in another thread.
            What is yielded comes later, since tiles are predicted ahead of it.

        Yields:
          `Window`s with the nuclei as they are found, and `Band`s of finished rows.

        Raises:
          ImageError: If it cannot be read, or is too large to be prepared.
        """
        shape = plane.shape[:2]
        look = colour_reader(plane, intensity_range(plane))
        # No higher for a small scale: rows of the whole width are kept.
        height, width = (max(round(n / max(scale, 1)), 1) for n in _CORE)
        found = windows.find_nuclei(
            self._predict_plane(plane, look, scale, tell_tiles),
            shape,
            lambda probs: self.decode(probs, scale=scale),
            core=(height, width),
            halo=choose_halo(scale),
        )
        for item in found:
            if isinstance(item, windows.Found):
                yield Window(
                    top=item.rows.start,
                    left=item.columns.start,
                    labels=item.labels,
                    probs=item.probs,
                    pixels=plane.read(item.rows, item.columns),
                )
            elif len(item.labels):
                rows = slice(item.top, item.top + len(item.labels))
                picture = look(rows, slice(0, shape[1]))
                yield Band(item.top, item.labels, item.probs, picture)

    def check_regions(self, plane: Plane) -> None:
        """Checks that regions of a plane can be predicted one by one.

        Raises:
          ImageError: If the network needs the whole plane.
        """
        if reason := self._why_whole():
            raise ImageError(
                f"{plane.name}: cannot be divided for this network: {reason}. {_ADVICE}"
            )

    def predict_region(
        self,
        plane: Plane,
        rows: slice,
        columns: slice,
        contrast: Contrast,
        *,
        longest: int,
        scale: float = 1.0,
    ) -> np.ndarray:
        """Predicts a region of a plane: the same as the whole has there.

        Args:
          plane: From `planes.open_planes`.
          rows: Of the region.
          columns: Of the region.
          contrast: Of the whole plane.
          longest: Side of the largest region that will be asked for, pixels. Tiles are
            planned for it, so that one shape is compiled for all regions.
          scale: Resize by this factor for the network.

        Returns:
          float32 [h, w, T].

        Raises:
          ImageError: If it cannot be read, or the network needs the whole plane.
        """
        self.check_regions(plane)
        look = colour_reader(plane, contrast.value_range)
        read, shape = normalized_reader(look, contrast), plane.shape[:2]
        if scale != 1:
            read = scaling.scaled_reader(read, shape, scale)
            shape = scaling.scaled_shape(shape, scale)
        seen = [
            self._seen(part, length, longest, scale)
            for part, length in zip((rows, columns), shape, strict=True)
        ]
        top, left = (part.start for part in seen)
        height, width = (part.stop - part.start for part in seen)
        bands = self._predict_bands(
            _shift(read, top, left), (height, width), _tell_nobody
        )
        probs = np.concatenate(list(bands))
        return scaling.restore_region(probs, (top, left), rows, columns, scale)

    def _seen(self, part: slice, length: int, longest: int, scale: float) -> slice:
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
        size = _round_up(math.ceil(longest * scale) + 2 * margin) + _SIZE_STEP
        first = (int(part.start * scale) - margin) // _SIZE_STEP * _SIZE_STEP
        start = max(min(first, _round_up(length) - size), 0)
        return slice(start, min(start + size, length))

    def _why_whole(self) -> str:
        """Says why the network must see a plane as a whole; "" if it need not."""
        if self._config.framing == "resize":
            return "it resizes whole images"
        return (
            "its CLAHE needs the whole image" if self._config.clahe_clip_limit else ""
        )

    def _predict_plane(
        self,
        plane: Plane,
        look: scaling.ReadRegion,
        scale: float,
        tell_tiles: TellTiles,
    ) -> Iterator[np.ndarray]:
        """Predicts a plane: float32 [rows, W, T], from top to bottom."""
        shape = plane.shape[:2]
        if self._config.framing == "resize":
            image_u8 = _read_all(plane, look, self._why_whole())
            image = preprocessing.to_float(image_u8)
            yield self.predict(image, tell_tiles=tell_tiles)
            return
        read = self._prepared_reader(plane, look)
        if scale == 1:
            yield from self._predict_bands(read, shape, tell_tiles)
            return
        scaled = scaling.scaled_shape(shape, scale)
        read = scaling.scaled_reader(read, shape, scale)
        bands = self._predict_bands(read, scaled, tell_tiles, width=shape[1])
        yield from scaling.restore_rows(bands, scaled, shape, scale)

    def _prepared_reader(
        self, plane: Plane, look: scaling.ReadRegion
    ) -> scaling.ReadRegion:
        """Reads regions prepared as in training, by statistics of the whole plane."""
        if self._config.clahe_clip_limit:
            image_u8 = _read_all(plane, look, self._why_whole())
            return _read_array(self._prepare(preprocessing.to_float(image_u8)))
        if self._config.normalization == "none":
            return look
        height, width = plane.shape[:2]
        counts = count_values(look, slice(0, height), slice(0, width))
        contrast = make_contrast(None, counts, self._config.normalization)
        return normalized_reader(look, contrast)

    def _prepare(self, image: np.ndarray) -> np.ndarray:
        """Prepares a whole image as in training: uint8 [h, w, 3]."""
        return preprocessing.prepare_image(
            image,
            clahe_clip_limit=self._config.clahe_clip_limit,
            normalization=self._config.normalization,
            side=self._config.size if self._config.framing == "resize" else 0,
        )

    def _network_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        resizes = self._config.framing == "resize"
        return (self._config.size, self._config.size) if resizes else shape

    def _predict_bands(
        self,
        read: scaling.ReadRegion,
        shape: tuple[int, int],
        tell_tiles: TellTiles,
        *,
        width: int = 0,
    ) -> Iterator[np.ndarray]:
        """Predicts tile by tile: float32 [rows, W, T], from top to bottom.

        Args:
          read: Rows and columns to prepared uint8 [h, w, 3].
          shape: Height and width of the image.
          tell_tiles: Called before the first tile and after each.
          width: Of the image before it was scaled, whose rows wait to be finished; 0 =
            it was not.
        """
        grid = self._plan(shape, max(width, shape[1]))
        tiles = (self._predict_tile(read, shape, grid, place) for place in grid.tiles)
        told = _tell_each(_fetch_behind(tiles), len(grid.tiles), tell_tiles)
        for top, probs in tiling.stitch(grid, read_ahead(told, _TILES_AHEAD)):
            yield probs[: max(shape[0] - top, 0), : shape[1]]
            del probs  # They must not stay while the next ones are made.

    def _plan(self, shape: tuple[int, int], width: int) -> tiling.Grid:
        """Places tiles, all of one size, and few sizes for images of many.

        The image goes on mirrored up to a round size. Tiles need cover no more of that
        than spoils the image.
        """
        tile = self._tile or tiling.largest_tile(
            width,
            features=self._features,
            depth=self._depth,
            num_targets=len(self.targets),
        )
        margin, multiple = tiling.decoder_reach(self._depth), self._multiple
        around = _SIZE_STEP
        if self._config.framing == "resize":
            around = multiple
            step, largest = multiple, max(shape) + multiple
        elif shape[0] * shape[1] > _MANY_TILES * tile**2:
            # A size of its own is worth its compilation.
            step, largest = multiple, tile
        else:
            step, largest = _SIZE_STEP, tile
        ends = _round_up(shape[0], around), _round_up(shape[1], around)
        covered = [
            min(_round_up(n + margin, multiple), end)
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
        read: scaling.ReadRegion,
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


def load_segmenter(
    checkpoint: str | os.PathLike | None = None,
    *,
    mode: Mode | None = None,
    threshold: float | None = None,
    tta: int = 1,
    tile: int | None = None,
    dtype: Dtype | None = None,
) -> Segmenter:
    """Loads a trained network.

    Args:
      checkpoint: The folder that training wrote to, or the name of a network that
        comes with the package; None = "small" on a CPU, "base" on a GPU.
      mode: "accurate" for the average of all heads, "fast" for the one that validation
        chose; None = the one of these that the thresholds were tuned for.
      threshold: Least probability of a nucleus's pixels; None = as tuned. If given,
        no nucleus is dropped for its mean probability.
      tta: Views to average: 1, or 8 for all flips and quarter turns.
      tile: Side of the largest tile, pixels; smaller ones take less memory and more
        time. None = by the widths of network and image.
      dtype: Of the network's computation, "float32" or "bfloat16"; None = as
        trained. Probabilities are float32 all the same.

    Raises:
      CheckpointError: If there is no readable checkpoint.
      ValueError: If there is no such dtype.
    """
    return make_segmenter(
        *restore_for_inference(pretrained.resolve(checkpoint)),
        mode=mode,
        threshold=threshold,
        tta=tta,
        tile=tile,
        dtype=dtype,
    )


def make_segmenter(
    model: UNetPlusPlus,
    variables: Variables,
    config: Config,
    *,
    mode: Mode | None = None,
    threshold: float | None = None,
    tta: int = 1,
    tile: int | None = None,
    dtype: Dtype | None = None,
) -> Segmenter:
    """Makes a segmenter of what `restore_for_inference` returns."""
    if dtype is not None:
        if dtype not in get_args(Dtype):
            raise ValueError(
                f"dtype is {dtype!r}; it may be {', '.join(get_args(Dtype))}"
            )
        model = model.clone(dtype=jnp.dtype(dtype))
    head = config.inference.fast_head or None
    decoding = dataclasses.replace(config.decoding, mode=mode or config.decoding.mode)
    if threshold is not None:
        # Who lowers it wants the faint nuclei, too.
        decoding = dataclasses.replace(
            decoding, threshold=threshold, min_probability=0.0
        )
    return Segmenter(
        make_predict_fn(model, variables, decoding.mode, head=head, tta=tta),
        config.data,
        decoding=decoding,
        depth=model.depth,
        features=model.features[0],
        tile=tile,
    )


def _plane_of_array(
    image: np.ndarray, channel: int | None, pixel_size: float | None
) -> Plane:
    """Makes a plane of an array [H, W] or [H, W, C]."""
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ImageError(f"the image: is {image.shape}; wanted is [H, W] or [H, W, C]")
    num_channels = pixels.shape[-1]
    if channel is None and num_channels not in (1, 3):
        raise ImageError(
            f"the image: has {num_channels} channels; say which one to look at "
            "(channel=0), or give red, green and blue without transparency "
            "(image[..., :3])"
        )
    if channel is None:
        segmented = tuple(range(num_channels))
    elif channel in range(num_channels):
        segmented = (channel,)
    else:
        raise ImageError(f"the image: has no channel {channel}; it has {num_channels}")
    return Plane(
        path=pathlib.Path("image"),
        name="the image",
        suffix="",
        shape=pixels.shape,
        dtype=pixels.dtype,
        channels=tuple(map(str, range(num_channels))),
        segmented=segmented,
        pixel_size=pixel_size,
        _read=lambda rows, columns: pixels[rows, columns],
    )


def _measure(window: Window, plane: Plane) -> dict[str, np.ndarray]:
    return measure_nuclei(
        window.labels,
        window.probs,
        window.pixels,
        channels=plane.channels,
        top=window.top,
        left=window.left,
        image_shape=plane.shape[:2],
        pixel_size=plane.pixel_size,
    )


def _join_columns(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}


def _read_all(plane: Plane, look: scaling.ReadRegion, reason: str) -> np.ndarray:
    height, width = plane.shape[:2]
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{plane.name}: {height} x {width} pixels are too many for this network: "
            f"{reason}. {_ADVICE}"
        )
    return look(slice(0, height), slice(0, width))


def choose_halo(scale: float) -> int:
    """Pixels of the image around a window; half the size of the largest nucleus."""
    return max(round(_HALO / scale), 1)


def _round_up(length: int, step: int = _SIZE_STEP) -> int:
    return -(-length // step) * step


def _shift(read: scaling.ReadRegion, top: int, left: int) -> scaling.ReadRegion:
    """Counts rows and columns from a place in the image."""
    return lambda rows, columns: read(
        slice(rows.start + top, rows.stop + top),
        slice(columns.start + left, columns.stop + left),
    )


def _read_array(image_u8: np.ndarray) -> scaling.ReadRegion:
    return lambda rows, columns: image_u8[rows, columns]


def _resize_probs(probs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = preprocessing.resize(probs, size)
    # OpenCV drops a last axis of length one.
    return resized.reshape(*size, probs.shape[-1])


def _rescale(decoding: DecodingConfig, scale: float) -> DecodingConfig:
    """Sizes in pixels of an image that the network saw resized by `scale`."""
    return dataclasses.replace(
        decoding,
        min_area=round(decoding.min_area / scale**2),
        max_hole=round(decoding.max_hole / scale**2),
        peak_distance=max(1, round(decoding.peak_distance / scale)),
        smoothing=decoding.smoothing / scale,
    )
