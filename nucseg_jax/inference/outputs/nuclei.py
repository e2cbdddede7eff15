"""What several writers need to know of a window's nuclei, computed once for all."""

from __future__ import annotations

import functools

import numpy as np

from nucseg_jax.inference.measurements import measure_nuclei
from nucseg_jax.inference.outputs.outlines import Outline, trace_outlines
from nucseg_jax.inference.streams import PlaneInfo, Window


class Nuclei:
    """The nuclei of a window: measurements and outlines, each made when asked for."""

    def __init__(self, window: Window, info: PlaneInfo):
        self.window, self.info = window, info

    @functools.cached_property
    def table(self) -> dict[str, np.ndarray]:
        """Columns as from `measure_nuclei`."""
        return measure_nuclei(
            self.window.labels,
            self.window.probs,
            self.window.pixels,
            channels=self.info.channels,
            top=self.window.top,
            left=self.window.left,
            image_shape=(self.info.height, self.info.width),
            pixel_size=self.info.pixel_size,
        )

    @functools.cached_property
    def outlines(self) -> list[Outline]:
        """One a row of the table, in coordinates of the image."""
        window = self.window
        return trace_outlines(window.labels, top=window.top, left=window.left)


def column_names(info: PlaneInfo) -> list[str]:
    """Names of the table's columns, which depend on the plane's channels alone."""
    empty = np.zeros((0, 0, len(info.channels)))
    window = Window(0, 0, np.zeros((0, 0), np.int32), np.zeros((0, 0)), empty)
    return list(Nuclei(window, info).table)
