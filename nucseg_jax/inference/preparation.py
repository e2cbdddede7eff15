"""Planes prepared as in training, region by region where the preparation allows it."""

from __future__ import annotations

import dataclasses

import numpy as np

from nucseg_jax.config import DataConfig
from nucseg_jax.data import preprocessing
from nucseg_jax.data.errors import MAX_PIXELS, ImageError
from nucseg_jax.data.planes import Plane
from nucseg_jax.inference.contrast import (
    count_values,
    make_contrast,
    normalized_reader,
)
from nucseg_jax.inference.scaling import ReadRegion

_ADVICE = "Take one trained with --framing=crop and --clahe_clip_limit=0"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What becomes of an image before the network sees it.

    Attributes:
      config: Of the training data.
    """

    config: DataConfig

    def network_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a prepared image."""
        return (self.config.size, self.config.size) if self.config.resizes else shape

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Prepares a whole image float32 [H, W, 3] in [0, 1]: uint8 [h, w, 3]."""
        return preprocessing.prepare_image(image, self.config)

    def reader(self, plane: Plane, look: ReadRegion) -> ReadRegion:
        """Reads prepared regions, by what the whole plane's values are.

        Args:
          plane: From `planes.open_planes`.
          look: Its `contrast.colour_reader`.

        Raises:
          ImageError: If it is too large to be prepared as a whole, and has to be.
        """
        if self._why_whole():
            return array_reader(self.prepare(self.read_whole(plane, look)))
        if self.config.normalization == "none":
            return look
        height, width = plane.shape[:2]
        counts = count_values(look, slice(0, height), slice(0, width))
        contrast = make_contrast(None, counts, self.config.normalization)
        return normalized_reader(look, contrast)

    def read_whole(self, plane: Plane, look: ReadRegion) -> np.ndarray:
        """Reads a plane: float32 [H, W, 3] in [0, 1]; arguments as of `reader`.

        Raises:
          ImageError: If it is too large.
        """
        height, width = plane.shape[:2]
        if height * width > MAX_PIXELS:
            raise ImageError(
                f"{plane.name}: {height} x {width} pixels are too many for this "
                f"network: {self._why_whole()}. {_ADVICE}"
            )
        return preprocessing.to_float(look(slice(0, height), slice(0, width)))

    def check_regions(self, plane: Plane) -> None:
        """Checks that regions of a plane can be prepared one by one.

        Raises:
          ImageError: If the network needs the whole plane.
        """
        if reason := self._why_whole():
            raise ImageError(
                f"{plane.name}: cannot be divided for this network: {reason}. {_ADVICE}"
            )

    def _why_whole(self) -> str:
        """Says why a plane is prepared as a whole; "" if it need not be."""
        if self.config.resizes:
            return "it resizes whole images"
        return "its CLAHE needs the whole image" if self.config.clahe_clip_limit else ""


def array_reader(image_u8: np.ndarray) -> ReadRegion:
    """Reads regions of an array."""
    return lambda rows, columns: image_u8[rows, columns]
