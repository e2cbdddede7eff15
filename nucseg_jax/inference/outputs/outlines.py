"""Label image -> polygons along the pixels' edges: drawn again, they give the pixels.

Corners are in image coordinates (x, y), where pixel (row, column) is the square from
(column, row) to (column + 1, row + 1). Rings are simple: none meets itself.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from nucseg_jax.inference.shapes import find_runs

# Ring: corners, int64 [k, 2], the first not repeated. Polygon: its outer ring, then the
# rings of its holes, the other way round.
Ring = np.ndarray
Polygon = list[Ring]


@dataclasses.dataclass(frozen=True)
class Outline:
    """A nucleus as polygons, of which there is one unless it is in parts."""

    id: int
    polygons: list[Polygon]


@dataclasses.dataclass(frozen=True)
class _Sides:
    """Straight pieces of outline with the nucleus on their right, as seen on a screen.

    Attributes:
      label: int64 [S].
      start: int64 [S, 2], corner (x, y).
      stop: int64 [S, 2].
      direction: int64 [S]; 0 = right, 1 = down, 2 = left, 3 = up.
    """

    label: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    direction: np.ndarray


def trace_outlines(
    label_image: np.ndarray, *, top: int = 0, left: int = 0
) -> list[Outline]:
    """Traces the outline of each nucleus, holes included.

    Args:
      label_image: Integers [H, W], 0 = background.
      top: Row of the label image in the whole image.
      left: Its column.

    Returns:
      One outline a label, in ascending order.
    """
    sides = _find_sides(label_image)
    if not len(sides.label):
        return []
    following, crossing = _link(sides)
    rings = _walk(following.tolist(), crossing.tolist(), sides)
    places = np.concatenate(rings)
    begins = np.cumsum([0, *map(len, rings[:-1])])
    (x0, y0), (x1, y1) = sides.start[places].T, sides.stop[places].T
    areas = np.add.reduceat(x0 * y1 - x1 * y0, begins) / 2
    corners = np.split(sides.start[places] + (left, top), begins[1:])
    return _group(sides.label[places[begins]], areas, corners)


def _find_sides(label_image: np.ndarray) -> _Sides:
    padded = np.pad(label_image, 1)
    center = padded[1:-1, 1:-1]
    found = []
    for direction, neighbour in enumerate(
        (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    ):
        bare = np.where(neighbour != center, center, 0)
        upright = direction % 2
        runs = find_runs(bare.T if upright else bare)
        # The neighbours to the right and below lie beyond the pixel.
        line = runs.row + (direction in (1, 2))
        ends = [runs.first, runs.last + 1]
        start, stop = ends if direction < 2 else ends[::-1]
        corners = [
            np.stack([line, end] if upright else [end, line], axis=1)
            for end in (start, stop)
        ]
        label = runs.ids[runs.nucleus]
        found.append((label, *corners, np.full(len(label), direction)))
    return _Sides(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _link(sides: _Sides) -> tuple[np.ndarray, np.ndarray]:
    """Finds which side follows each, and which begin where an outline meets itself.

    Where two pixels of a nucleus meet at a corner, the outline stays with its pixel.

    Returns:
      int64 [S], bool [S].
    """
    stride = int(sides.start.max()) + 1
    begin, end = (
        (sides.label * stride + corner[:, 1]) * stride + corner[:, 0]
        for corner in (sides.start, sides.stop)
    )
    order = np.argsort(begin, kind="stable")
    ordered = begin[order]
    twice = ordered[1:] == ordered[:-1]
    crossing = np.zeros(len(order), bool)
    crossing[order[1:]] |= twice
    crossing[order[:-1]] |= twice
    place = np.searchsorted(ordered, end)
    following = order[place]
    other = order[np.minimum(place + 1, len(order) - 1)]
    turns_right = sides.direction[other] == (sides.direction + 1) % 4
    return np.where(crossing[following] & turns_right, other, following), crossing


def _walk(following: list[int], crossing: list[bool], sides: _Sides) -> list[list[int]]:
    """Follows the sides around; a ring is split off wherever it meets itself."""
    rings, seen = [], bytearray(len(following))
    for first in range(len(following)):
        path: list[int] = []
        met: dict[tuple[int, ...], int] = {}
        side = first
        while not seen[side]:
            seen[side] = 1
            if crossing[side]:
                corner = tuple(sides.start[side].tolist())
                if (cut := met.get(corner)) is not None:
                    rings.append(path[cut:])
                    del path[cut:]
                    met = {key: place for key, place in met.items() if place < cut}
                met[corner] = len(path)
            path.append(side)
            side = following[side]
        if path:
            rings.append(path)
    return rings


def _group(labels: np.ndarray, areas: np.ndarray, rings: list[Ring]) -> list[Outline]:
    """Gathers the rings of each label; holes have negative areas."""
    order = np.argsort(labels, kind="stable")
    outlines = []
    for group in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        outer = [place for place in group if areas[place] > 0]
        polygons = [[rings[place]] for place in outer]
        for place in group:
            if areas[place] < 0:
                owner = _find_owner(rings[place], polygons, areas[outer])
                polygons[owner].append(rings[place])
        outlines.append(Outline(int(labels[group[0]]), polygons))
    return outlines


def _find_owner(hole: Ring, polygons: list[Polygon], areas: np.ndarray) -> int:
    """Finds the polygon that a hole is in: the smallest one around its rim."""
    along = np.sign(hole[1] - hole[0])
    rim = hole[0] + (along + (-along[1], along[0])) / 2
    around = [
        cv2.pointPolygonTest(polygon[0].astype(np.float32), rim.tolist(), False) > 0
        for polygon in polygons
    ]
    return int(np.argmin(np.where(around, areas, np.inf)))
