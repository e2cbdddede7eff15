"""Stopping from outside: SIGTERM and SIGINT become a question that the loop asks.

Schedulers send SIGTERM before they kill, people press Ctrl-C. The step that is under
way ends, its result is saved, and the process leaves by the exit code of the signal.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Self, TypeVar

_T = TypeVar("_T")

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal ended the work, which is saved.

    Attributes:
      exit_code: 128 + the signal's number, as shells have it.
    """

    def __init__(self, signum: int):
        self.exit_code = 128 + signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


class StopRequest:
    """Remembers a signal while it is entered; the same once more acts as without it.

        with StopRequest() as stop:
            for batch in batches:
                stop.check()

    Enter it in the main thread, where Python runs handlers.
    """

    def __init__(self):
        self._signum: int = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for signum in SIGNALS:
            self._before[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()

    @property
    def signum(self) -> int:
        """The signal that came; 0 = none."""
        return self._signum

    def ask(self) -> bool:
        """Tells whether a signal came."""
        return bool(self._signum)

    def check(self) -> None:
        """Raises `Stopped` if a signal came."""
        if self.ask():
            raise Stopped(self._signum)

    def watch(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yields the items; raises `Stopped` before the next one if a signal came."""
        for item in items:
            self.check()
            yield item

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self._signum = signum
        signal.signal(signum, self._before.pop(signum))
        # Not print: the signal may have come in the midst of one.
        os.write(2, b"\nstopping after this step; once more stops at once\n")
