"""The error of files that cannot be read as images, and the limit on their size."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np

MAX_PIXELS = 1 << 28  # 16,384 x 16,384: 3 GiB as float32 RGB.


class ImageError(ValueError):
    """A file cannot be read as an image; the message names the file and the cause."""


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Turns what decoders raise into an ImageError of one line that names the file.

    They raise many kinds of errors on damaged files, struct.error and zlib.error among
    them: all mean that this file cannot be read.
    """
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: cannot be read as an image ({cause})") from error


def check_dtype(name: str | pathlib.Path, dtype: np.dtype) -> None:
    """Refuses values that are not intensities: complex numbers, words, dates, objects.

    Raises:
      ImageError: If they are; calls the image by `name`.
    """
    if dtype.kind not in "buif":
        raise ImageError(f"{name}: values of type {dtype} are not intensities")


def check_size(path: pathlib.Path, num_pixels: int, max_pixels: int) -> None:
    """Refuses what would need too much memory.

    Args:
      path: The file.
      num_pixels: Pixels that would have to be decoded at once.
      max_pixels: The limit.

    Raises:
      ImageError: If there are more pixels than the limit.
    """
    if num_pixels > max_pixels:
        raise ImageError(
            f"{path}: {num_pixels:,} pixels are more than the limit of {max_pixels:,}"
        )
