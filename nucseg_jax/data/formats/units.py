"""Lengths in the units that microscopes' files name."""

from __future__ import annotations

import math

# Pixels of any image, µm; TIFF cannot tell sizes much below.
FINEST, COARSEST = 1e-5, 1e4

_MICROMETRES = {
    "µm": 1.0,  # U+00B5, the micro sign
    "μm": 1.0,  # U+03BC, the Greek letter
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometre": 1.0,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "nanometre": 1e-3,
    "å": 1e-4,
    "angstrom": 1e-4,
    "pm": 1e-6,
    "picometer": 1e-6,
    "mm": 1e3,
    "millimeter": 1e3,
    "millimetre": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "centimetre": 1e4,
    "inch": 25_400.0,
    "in": 25_400.0,
    "m": 1e6,
    "meter": 1e6,
    "metre": 1e6,
}


def micrometres(length: float | str, unit: str) -> float | None:
    """Converts a length.

    Args:
      length: A number, or its text.
      unit: Its unit; ImageJ writes the micro sign as an escape.

    Returns:
      Micrometres; None if the unit is unknown, such as "pixel", or the length is no
      number, or none that a pixel could have.
    """
    name = unit.replace("\\u00B5", "µ").strip().lower()
    try:
        size = float(length) * _MICROMETRES[name]
    except (KeyError, ValueError):
        return None
    return size if FINEST < size < COARSEST else None


def combine_sides(sizes: list[float | None]) -> float | None:
    """Finds the side of a square of a pixel's area.

    Args:
      sizes: Height and width in micrometres; if one is not known, both are taken to be
        equal.

    Returns:
      Micrometres; None if nothing is known.
    """
    known = [size for size in sizes if size is not None]
    return math.prod(known) ** (1 / len(known)) if known else None
