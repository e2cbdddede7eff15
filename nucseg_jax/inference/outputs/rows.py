"""Rows that come in bands of any height, regrouped."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np


class RowBlocks:
    """Regroups rows to blocks of one height; only the last block may be lower."""

    def __init__(self, height: int):
        self._height = height
        self._parts: deque[np.ndarray] = deque()
        self._held = 0

    def push(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Takes rows [h, ...], and yields the blocks that they complete."""
        self._parts.append(rows)
        self._held += len(rows)
        while self._held >= self._height:
            yield self._take(self._height)
        if self._parts:
            # A view would keep the whole band in memory until the next one comes.
            self._parts[-1] = self._parts[-1].copy()

    def rest(self) -> Iterator[np.ndarray]:
        """Yields the rows that fill no block, if there are any."""
        if self._held:
            yield self._take(self._held)

    def _take(self, count: int) -> np.ndarray:
        taken, missing = [], count
        while missing:
            part = self._parts.popleft()
            taken.append(part[:missing])
            if len(part) > missing:
                self._parts.appendleft(part[missing:])
            missing -= len(taken[-1])
        self._held -= count
        return taken[0] if len(taken) == 1 else np.concatenate(taken)
