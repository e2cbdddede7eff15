"""Lets the making of values run ahead of their use, in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_END = object()


def read_ahead(values: Iterable[T], depth: int = 1) -> Iterator[T]:
    """Yields `values`, up to `depth` of which are made before they are asked for.

    An error in making them is raised where they are used. If the caller stops early,
    so does the thread, after the value that it is at.
    """
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: object) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for value in values:
                put((value, None))
                if stopped.is_set():
                    return
            put((_END, None))
        # Whatever went wrong in the thread belongs to the caller.
        except BaseException as error:
            put((_END, error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if error is not None:
                raise error
            if value is _END:
                return
            yield value
    finally:
        stopped.set()
        thread.join()
