"""What a file of any format comes to: stacks of pictures of one size.

An axis is named by a letter: Y and X are rows and columns, C channels, S the samples of
a colour, T times, Z depths; any other letter counts pictures, too. I and Q are what
tifffile calls an axis of which the file does not say what it is.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nucseg_jax.data.errors import ImageError, check_dtype

COLOURS = ("red", "green", "blue")

_UNKNOWN = "IQ"
_MAX_PICTURES = 1_000_000  # More are a damaged header rather than a recording.

# (index along each axis that counts pictures, rows, columns) -> [h, w, C]
ReadPicture = Callable[[tuple[int, ...], slice, slice], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stack:
    """Pictures of one size with all their channels, read by region.

    Attributes:
      axes: Letters of the file's axes that are longer than one, Y and X always.
      lengths: Of these axes.
      height: Of a picture as it is read, after any rotation.
      width: Of a picture as it is read.
      channels: Names of the values of a pixel.
      is_colour: Whether the channels are red, green and blue.
      dtype: Of the values.
      pixel_size: Micrometres a pixel; None = unknown.
      read: (index, rows, columns) -> [h, w, C]. Slices have a start and a stop within
        the picture.
      read_stored: The same of values that are numbers and not light, if it differs:
        where zero means white, `read` turns them round, and a palette it looks up.
      name: Tells the stacks of a file apart: "s=1"; empty if there is one.
      files: That hold the pixels, if they are several: an OME-TIFF may be written in
        parts, each of which tells of all.
    """

    axes: str
    lengths: tuple[int, ...]
    height: int
    width: int
    channels: tuple[str, ...]
    is_colour: bool
    dtype: np.dtype
    pixel_size: float | None
    read: ReadPicture
    read_stored: ReadPicture | None = None
    name: str = ""
    files: tuple[pathlib.Path, ...] = ()

    @property
    def counted(self) -> str:
        """Letters of the axes that count pictures."""
        return "".join(axis for axis in self.axes if axis not in "CSYX")

    @property
    def num_pictures(self) -> int:
        return math.prod(self._counts())

    def indices(self) -> Iterator[tuple[int, ...]]:
        """Index of each picture, in the file's order."""
        return itertools.product(*(range(count) for count in self._counts()))

    def _counts(self) -> list[int]:
        pairs = zip(self.axes, self.lengths, strict=True)
        return [length for axis, length in pairs if axis in self.counted]


def check_stack(path: pathlib.Path, stack: Stack) -> None:
    """Refuses stacks without pixels, and counts of pictures that cannot be true."""
    if stack.height < 1 or stack.width < 1 or not stack.channels:
        shape = (stack.height, stack.width, len(stack.channels))
        raise ImageError(f"{path}: the image has no pixels, its shape is {shape}")
    if not 1 <= stack.num_pictures <= _MAX_PICTURES:
        raise ImageError(
            f"{path}: its header tells of {stack.num_pictures:,} pictures, "
            f"{stack.axes} {stack.lengths}; the file is damaged"
        )
    check_dtype(path, stack.dtype)


def check_background(path: pathlib.Path, colour: Sequence[int]) -> None:
    """Refuses truth with a palette whose value 0 is not shown as black.

    Some programs number the colours as they come, others show masks on white: what
    is background cannot be told.

    Args:
      path: The file.
      colour: Of the value 0.
    """
    if any(colour):
        raise ImageError(
            f"{path}: its palette shows the value 0, the background of masks and label "
            f"images, as the colour {tuple(map(int, colour))}; save it in gray instead"
        )


def name_channels_apart(stack: Stack) -> Stack:
    """Puts its number before the name of each channel that shares it with another."""
    uses = Counter(name.casefold() for name in stack.channels)
    names = tuple(
        name if uses[name.casefold()] == 1 else f"{number}_{name}"
        for number, name in enumerate(stack.channels)
    )
    if len({name.casefold() for name in names}) < len(names):
        names = tuple(f"{number}_{name}" for number, name in enumerate(stack.channels))
    return dataclasses.replace(stack, channels=names)


def squeeze(axes: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Leaves out axes of length one, but for Y and X."""
    pairs = [
        (axis, length)
        for axis, length in zip(axes, shape, strict=True)
        if length != 1 or axis in "YX"
    ]
    return "".join(axis for axis, _ in pairs), tuple(length for _, length in pairs)


def settle_axes(
    path: pathlib.Path, axes: str, lengths: tuple[int, ...], answer: str | None
) -> str:
    """Finds what each axis is: as the user says, or else as the file says.

    The answer holds for files with as many axes as it has letters, and if a file says
    which axes are rows and columns, these must agree. Others, such as single pictures
    between stacks, keep their own axes if these are known.

    Args:
      path: The file.
      axes: Letters that the file gives, squeezed.
      lengths: Of these axes.
      answer: Letters that the user gives; None = none.

    Returns:
      One letter an axis.

    Raises:
      ImageError: If an axis is unknown and there is no answer, or no valid one.
    """
    is_known = not set(axes) & set(_UNKNOWN)
    if answer is not None:
        answer = answer.upper()
        _check_answer(answer)
        agrees = all(answer.index(axis) == axes.index(axis) for axis in "YX")
        if len(answer) == len(axes) and (agrees or not is_known):
            return answer
    if not is_known:
        raise ImageError(_question(path, axes, lengths))
    return axes


def _check_answer(answer: str) -> None:
    letters = set(answer)
    if (
        len(letters) != len(answer)
        or not {"Y", "X"} <= letters
        or not (answer.isascii() and answer.isalpha())
        or letters & set(_UNKNOWN)
    ):
        raise ImageError(
            f"--axes={answer}: expected one letter an axis, each once, Y and X among "
            "them, such as TYX, ZYX, CYX or TCZYX"
        )


def _question(path: pathlib.Path, axes: str, lengths: tuple[int, ...]) -> str:
    free = [letter for letter in "TZCPRA" if letter not in axes]
    answers = [_fill(axes, [free[n], *free[:n], *free[n + 1 :]]) for n in range(3)]
    return (
        f"{path}: has the axes {axes} {lengths}; the file does not say which of them "
        "are times (T), depths (Z) or channels (C), so say it with "
        + " or ".join(f"--axes={answer}" for answer in answers)
        + ", or split the stack"
    )


def _fill(axes: str, letters: list[str]) -> str:
    """Puts letters in the places of unknown axes, from left to right."""
    remaining = iter(letters)
    return "".join(next(remaining) if axis in _UNKNOWN else axis for axis in axes)
