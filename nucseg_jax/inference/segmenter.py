"""A trained network as one callable: image in, nuclei out.

Images of any size take one path: regions are read and prepared (`preparation`),
predicted tile by tile (`tile_predictor`) and decoded window by window (`windows`).
What fits into one tile is one tile and one window.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import get_args

import jax.numpy as jnp
import numpy as np

from nucseg_jax import pretrained
from nucseg_jax.checkpoints import restore_for_inference
from nucseg_jax.config import Config, DataConfig, DecodingConfig, Dtype, Mode
from nucseg_jax.data import preprocessing
from nucseg_jax.data.errors import ImageError
from nucseg_jax.data.hue import in_gray
from nucseg_jax.data.intensity import intensity_range
from nucseg_jax.data.planes import Plane, plane_of_array
from nucseg_jax.inference import scaling, windows
from nucseg_jax.inference.contrast import Contrast, colour_reader, normalized_reader
from nucseg_jax.inference.instances import label_nuclei, rescale
from nucseg_jax.inference.measurements import measure_nuclei
from nucseg_jax.inference.predictor import PredictFn, make_predict_fn
from nucseg_jax.inference.preparation import Preparation, array_reader
from nucseg_jax.inference.streams import Band, Window
from nucseg_jax.inference.tile_predictor import TellTiles, TilePredictor, tell_nobody
from nucseg_jax.network.unet_plus_plus import UNetPlusPlus, Variables

# Windows of decoding, in pixels of the training scale: low, because rows of the whole
# width are kept for them, and as wide as is worth their memory. The halo is twice the
# width of a large nucleus at 40x magnification.
_CORE = (768, 2048)
_HALO = 128
# Resized probabilities may be a little above 1; bytes are far above it.
_HIGHEST = 1.01


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
          ValueError: If `tile` is no positive multiple of 64.
        """
        self._config = config
        self._preparation = Preparation(config)
        self._tiles = TilePredictor(
            predict_fn,
            depth=depth,
            features=features,
            num_targets=len(config.targets),
            tile=tile,
            undivided=self._config.resizes,
        )
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
          1 where either pixel size is unknown, where they differ by less than a tenth,
          or where the network resizes all images anyway.
        """
        trained = self._config.pixel_size
        if not pixel_size or not trained or self._config.resizes:
            return 1.0
        scale = pixel_size / trained
        return scale if not 0.9 < scale < 1.1 else 1.0

    def __call__(
        self,
        image: np.ndarray,
        *,
        channel: int | None = None,
        pixel_size: float | None = None,
        scale: float | None = None,
    ) -> Segmentation:
        """Segments an array.

        Args:
          image: [H, W] or [H, W, C] of any real dtype. Three channels are red, green
            and blue; one hue on black is seen in gray, see `hue.in_gray`.
          channel: The one channel to look at; needed unless there is one, or three.
          pixel_size: Micrometres a pixel, for the measurements' units and the scale.
          scale: Resize by this factor for the network, if the image was taken at
            another magnification than those it was trained on; None = by the pixel
            sizes, see `choose_scale`.

        Raises:
          ImageError: If shape or dtype is another, or the scale is out of range.
          ValueError: If the pixel size is out of range, see `planes.check_pixel_size`.
        """
        plane = plane_of_array(
            _plain_array(image), channel=channel, pixel_size=pixel_size
        )
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
        tell_tiles: TellTiles = tell_nobody,
    ) -> np.ndarray:
        """Predicts the probabilities of an image.

        Args:
          image: float32 [H, W, 3] in [0, 1], as from `images.read_image`, which sees
            one hue in gray and stretches 12 bits, as `segment(image)` does.
          size: Height and width of the result; None = the image's own.
          tell_tiles: Called before the first tile and after each.

        Returns:
          float32 [*size, T].

        Raises:
          ImageError: If shape, dtype or range are others.
        """
        read = array_reader(self._preparation.prepare(image))
        shape = self._preparation.network_shape(image.shape[:2])
        probs = np.concatenate(list(self._tiles.bands(read, shape, tell_tiles)))
        return _resize_probs(probs, size or image.shape[:2])

    def decode(
        self,
        probs: np.ndarray,
        *,
        scale: float = 1.0,
        decoding: DecodingConfig | None = None,
    ) -> np.ndarray:
        """Turns probabilities float32 [H, W, T] to a label image int32 [H, W].

        Args:
          probs: At the image's own size; of the whole image, where the network sees all
            images at one size.
          scale: By which the network saw the image resized, if it does not.
          decoding: Instead of the segmenter's own.

        Raises:
          ValueError: If these are not the network's probabilities, such as bytes.
        """
        if probs.ndim != 3 or probs.shape[2] != len(self.targets):
            raise ValueError(
                f"probabilities have the shape {probs.shape}; expected [H, W, "
                f"{len(self.targets)}]"
            )
        highest = float(probs[..., 0].max(initial=0))
        if probs.dtype != np.float32 or highest > _HIGHEST:
            raise ValueError(
                f"probabilities are {probs.dtype} up to {highest:g}; expected float32 "
                "in [0, 1]"
            )
        if self._config.resizes:
            scale = self._config.size / math.sqrt(math.prod(probs.shape[:2]))
        decoding = decoding or self.decoding
        return label_nuclei(probs, self.targets, decoding, scale=scale)

    def stream(
        self,
        plane: Plane,
        *,
        scale: float | None = None,
        tell_tiles: TellTiles = tell_nobody,
    ) -> Iterator[Window | Band]:
        """Segments a plane of any size in bounded memory.

        Args:
          plane: From `planes.open_planes`; one hue on black is seen in gray, see
            `hue.in_gray`.
          scale: Resize by this factor for the network; None = by the pixel sizes, see
            `choose_scale`.
          tell_tiles: Called before the first tile and after each, in another thread.
            What is yielded comes later, since tiles are predicted ahead of it.

        Yields:
          `Window`s with the nuclei as they are found, and `Band`s of finished rows.

        Raises:
          ImageError: If it cannot be read, or is too large to be prepared, or the scale
            is out of range.
        """
        if scale is None:
            scale = self.choose_scale(plane.pixel_size)
        self.check_scale(plane, scale)
        plane, shape = in_gray(plane), plane.shape[:2]
        look = colour_reader(plane, intensity_range(plane))
        # No higher for a small scale: rows of the whole width are kept.
        height, width = (max(round(n / max(scale, 1)), 1) for n in _CORE)
        if self._config.resizes:
            height, width = shape  # All of it is in memory.
        found = windows.find_nuclei(
            self._predict_plane(plane, look, scale, tell_tiles),
            shape,
            lambda probs: self.decode(probs, scale=scale),
            core=(height, width),
            halo=choose_halo(scale),
            rim=choose_rim(self.decoding, scale),
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

    def check_scale(self, plane: Plane, scale: float) -> None:
        """Checks that a plane can be seen at a scale.

        Raises:
          ImageError: If it would blur all to one value or blow up each pixel to
            thousands, as wrong pixel sizes do, or if the network resizes whole images,
            whatever their scale.
        """
        try:
            scaling.check_scale(scale)
        except ValueError as error:
            raise ImageError(f"{plane.name}: {error}") from error
        if scale != 1 and self._config.resizes:
            raise ImageError(
                f"{plane.name}: the network sees whole images resized to one size, so "
                f"that a scale of {scale:g} would change nothing: leave it out"
            )

    def check_regions(self, plane: Plane) -> None:
        """Checks that regions of a plane can be predicted one by one.

        Raises:
          ImageError: If the network needs the whole plane.
        """
        self._preparation.check_regions(plane)

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
          plane: From `hue.in_gray`, and so was what the contrast is of.
          rows: Of the region.
          columns: Of the region.
          contrast: Of the whole plane.
          longest: Side of the largest region that will be asked for, pixels. Tiles are
            planned for it, so that one shape is compiled for all regions.
          scale: Resize by this factor for the network.

        Returns:
          float32 [h, w, T].

        Raises:
          ImageError: If it cannot be read, or the network needs the whole plane, or the
            scale is out of range.
        """
        self.check_scale(plane, scale)
        self.check_regions(plane)
        look = colour_reader(plane, contrast.value_range)
        read, shape = normalized_reader(look, contrast), plane.shape[:2]
        if scale != 1:
            read = scaling.scaled_reader(read, shape, scale)
            shape = scaling.scaled_shape(shape, scale)
        seen = [
            self._tiles.seen(part, length, longest, scale)
            for part, length in zip((rows, columns), shape, strict=True)
        ]
        top, left = (part.start for part in seen)
        height, width = (part.stop - part.start for part in seen)
        bands = self._tiles.bands(_shift(read, top, left), (height, width))
        probs = np.concatenate(list(bands))
        return scaling.restore_region(probs, (top, left), rows, columns, scale)

    def _predict_plane(
        self,
        plane: Plane,
        look: scaling.ReadRegion,
        scale: float,
        tell_tiles: TellTiles,
    ) -> Iterator[np.ndarray]:
        """Predicts a plane: float32 [rows, W, T], from top to bottom."""
        shape = plane.shape[:2]
        if self._config.resizes:
            image = self._preparation.read_whole(plane, look)
            yield self.predict(image, tell_tiles=tell_tiles)
            return
        read = self._preparation.reader(plane, look)
        if scale == 1:
            yield from self._tiles.bands(read, shape, tell_tiles)
            return
        scaled = scaling.scaled_shape(shape, scale)
        read = scaling.scaled_reader(read, shape, scale)
        bands = self._tiles.bands(read, scaled, tell_tiles, width=shape[1])
        yield from scaling.restore_rows(bands, scaled, shape, scale)


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
        chose; None = the one of these that did better on validation. Thresholds are
        tuned for each.
      threshold: Least probability of a nucleus's pixels; None = as tuned. If given,
        no nucleus is dropped for its mean probability.
      tta: Views to average: 1, or 8 for all flips and quarter turns.
      tile: Side of the largest tile, pixels; smaller ones take less memory and more
        time. None = by the widths of network and image.
      dtype: Of the network's computation, "float32" or "bfloat16"; None = as
        trained, and float32 for networks that were exported, as the project's own.
        Probabilities are float32 all the same.

    Raises:
      CheckpointError: If there is no readable checkpoint.
      ValueError: If there is no such mode, dtype or number of views, or no tile can be
        of that size.
    """
    return make_segmenter(
        *restore_for_inference(pretrained.resolve(checkpoint), mode),
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
    """Makes a segmenter of what `restore_for_inference` returns for the mode."""
    if dtype is not None:
        if dtype not in get_args(Dtype):
            raise ValueError(
                f"dtype is {dtype!r}; it may be {', '.join(get_args(Dtype))}"
            )
        model = model.clone(dtype=jnp.dtype(dtype))
    decoding = choose_decoding(config.decoding, mode, threshold)
    return Segmenter(
        make_predict_fn(
            model, variables, decoding.mode, head=config.fast_head, tta=tta
        ),
        config.data,
        decoding=decoding,
        depth=model.depth,
        features=model.features[0],
        tile=tile,
    )


def choose_decoding(
    tuned: DecodingConfig, mode: Mode | None, threshold: float | None
) -> DecodingConfig:
    """Changes a network's decoding as `load_segmenter` was asked to."""
    decoding = dataclasses.replace(tuned, mode=mode or tuned.mode)
    if threshold is None:
        return decoding
    # A caller who lowers it wants faint nuclei, too.
    return dataclasses.replace(decoding, threshold=threshold, min_probability=0.0)


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


def _plain_array(image: np.ndarray) -> np.ndarray:
    if np.ma.isMaskedArray(image):
        raise ImageError(
            "the image: is a masked array; fill it first, as with image.filled(0)"
        )
    array = np.asarray(image)
    # NumPy knows the kind of JAX's own floats, such as bfloat16, no more than of words.
    is_jax_float = array.dtype.kind == "V" and jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32) if is_jax_float else array


def choose_halo(scale: float) -> int:
    """Pixels of the image around a window, see `windows.find_nuclei`."""
    return max(round(_HALO / scale), 1)


def choose_rim(decoding: DecodingConfig, scale: float) -> int:
    """Pixels at the end of a window in which nuclei hang on what lies beyond it.

    Peaks are compared that far, and what is compared is smoothed.
    """
    sizes = rescale(decoding, scale)
    reach = sizes.peak_distance + math.ceil(4 * sizes.smoothing)
    return max(min(reach, choose_halo(scale) // 2), 1)


def _shift(read: scaling.ReadRegion, top: int, left: int) -> scaling.ReadRegion:
    """Counts rows and columns from a place in the image."""
    return lambda rows, columns: read(
        slice(rows.start + top, rows.stop + top),
        slice(columns.start + left, columns.stop + left),
    )


def _resize_probs(probs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = preprocessing.resize(probs, size)
    # OpenCV drops a last axis of length one.
    return resized.reshape(*size, probs.shape[-1])
