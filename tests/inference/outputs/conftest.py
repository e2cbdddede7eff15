import dataclasses
import pathlib

import numpy as np
import pytest
import scipy.ndimage

from nucseg_jax.inference.outputs.nuclei import Nuclei
from nucseg_jax.inference.streams import Band, PlaneInfo, Window

CHANNELS = ("DAPI", "GFP")
TARGETS = ("foreground", "boundary")


@dataclasses.dataclass(frozen=True)
class Plane:
    """A whole plane with its nuclei, cut into windows and bands as wanted."""

    info: PlaneInfo
    labels: np.ndarray
    probs: np.ndarray
    pixels: np.ndarray
    picture: np.ndarray

    def windows(self, count: int = 1) -> list[Window]:
        """Each nucleus in one of `count` windows, which are as small as they can be."""
        found = []
        ids = np.unique(self.labels[self.labels > 0])
        for part in np.array_split(ids, count) if len(ids) else []:
            mine = np.where(np.isin(self.labels, part), self.labels, 0)
            ((rows, columns),) = scipy.ndimage.find_objects((mine > 0).astype(np.int8))
            arrays = (a[rows, columns] for a in (mine, self.probs, self.pixels))
            found.append(Window(rows.start, columns.start, *arrays))
        return found

    def bands(self, *heights: int) -> list[Band]:
        """Bands of these heights, then one of the rest."""
        tops = np.minimum(np.cumsum([0, *heights]), self.info.height)
        stops = [*tops[1:], self.info.height]
        return [
            Band(int(a), self.labels[a:b], self.probs[a:b], self.picture[a:b])
            for a, b in zip(tops, stops, strict=True)
            if a < b
        ]

    def feed(self, writer, *, num_windows: int = 1, heights: tuple[int, ...] = ()):
        """Hands everything to a writer."""
        for window in self.windows(num_windows):
            writer.add_nuclei(Nuclei(window, self.info))
        for band in self.bands(*heights):
            writer.add_band(band)


def make_plane(labels: np.ndarray, **info) -> Plane:
    """A plane with noise for pixels and probabilities."""
    rng = np.random.default_rng(0)
    shape = labels.shape
    settings = {
        "name": "folder/a & b.tif",
        "source": pathlib.Path("/images/folder/a & b.tif"),
        "height": shape[0],
        "width": shape[1],
        "channels": CHANNELS,
        "seen": CHANNELS[:1],
        "pixel_size": None,
        "targets": TARGETS,
    }
    targets = (settings | info)["targets"]
    return Plane(
        PlaneInfo(**(settings | info)),
        labels.astype(np.int32),
        rng.random((*shape, len(targets)), np.float32),
        rng.integers(0, 4096, (*shape, len(CHANNELS))).astype(np.uint16),
        rng.integers(0, 256, (*shape, 3)).astype(np.uint8),
    )


def draw_nuclei(height: int, width: int, spacing: int = 16) -> np.ndarray:
    """Discs on a grid, some of which touch the border; int32 [H, W]."""
    rows, columns = np.mgrid[:height, :width]
    grid = (rows // spacing) * -(-width // spacing) + columns // spacing + 1
    dy, dx = rows % spacing - spacing / 2, columns % spacing - spacing / 2
    return np.where(np.hypot(dy, dx) < spacing * 0.45, grid, 0).astype(np.int32)


@pytest.fixture(name="draw_nuclei")
def draw_nuclei_fixture():
    return draw_nuclei


@pytest.fixture(name="make_plane")
def make_plane_fixture():
    return make_plane


@pytest.fixture(scope="session")
def noisy():
    """300 x 300 pixels of which no file is small: labels and values without order."""
    rng = np.random.default_rng(0)
    labels = rng.integers(1, 3000, (300, 300)) * rng.integers(0, 2, (300, 300))
    labels[:, 150:] = 0
    return make_plane(labels)


@pytest.fixture(scope="session")
def plane():
    """70 x 90 pixels, 30 nuclei, no pixel size."""
    return make_plane(draw_nuclei(70, 90))
