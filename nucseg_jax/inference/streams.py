"""What flows from the segmenter to tables and pictures: nuclei, and finished rows.

One path serves small and huge images. An image that fits is one window and one band;
of a larger one, only a few rows of tiles are in memory at a time.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

# Rows that are handed on at a time: each copy of them lies in memory some four times.
BAND_ROWS = 64


@dataclasses.dataclass(frozen=True)
class PlaneInfo:
    """What outputs need to know of a plane before its first pixel.

    Attributes:
      name: For tables and titles: "b/c.tif", "stack.tif t=2".
      source: The file.
      height: Pixels.
      width: Pixels.
      channels: Names of the raw channels.
      seen: Names of those that the network sees.
      pixel_size: Micrometres a pixel; None = unknown.
      targets: Names of the probabilities' channels.
      scale: By which the network sees it resized.
      stamp: Of the file, see `jobs.take_stamp`; "" = unknown.
      settings: Which they are, of network and options; "" = unknown.
    """

    name: str
    source: pathlib.Path
    height: int
    width: int
    channels: tuple[str, ...]
    seen: tuple[str, ...]
    pixel_size: float | None
    targets: tuple[str, ...]
    scale: float = 1.0
    stamp: str = ""
    settings: str = ""


@dataclasses.dataclass(frozen=True)
class Window:
    """Nuclei newly found in a part of the image, each of them whole.

    A nucleus appears in one window only.

    Attributes:
      top: First row in the image.
      left: First column in the image.
      labels: int32 [h, w]; 0 = background, or a nucleus of another window. Ids are
        unique over the image.
      probs: float32 [h, w, T].
      pixels: Values as the file has them, [h, w, C].
    """

    top: int
    left: int
    labels: np.ndarray
    probs: np.ndarray
    pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Band:
    """Finished rows of the image's whole width; bands come from top to bottom.

    Attributes:
      top: First row in the image.
      labels: int32 [h, W].
      probs: float32 [h, W, T].
      picture: uint8 [h, W, 3], the image as the network saw it.
    """

    top: int
    labels: np.ndarray
    probs: np.ndarray
    picture: np.ndarray
