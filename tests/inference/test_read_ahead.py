import itertools
import threading
import time

import pytest

from nucseg_jax.inference.read_ahead import read_ahead


def test_order_is_kept():
    assert list(read_ahead(iter(range(100)), depth=3)) == list(range(100))


def test_nothing_is_nothing():
    assert list(read_ahead([])) == []


def test_an_error_reaches_the_caller_after_what_came_before():
    def values():
        yield 1
        raise OSError("disk")

    ahead = read_ahead(values())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="disk"):
        next(ahead)


def test_values_are_made_while_others_are_used():
    made = []

    def values():
        for k in range(3):
            made.append(k)
            yield k

    ahead = read_ahead(values(), depth=1)
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) >= 2
    assert list(ahead) == [1, 2]


def test_stopping_early_ends_the_thread():
    before = threading.active_count()
    ahead = read_ahead(itertools.count(), depth=2)
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == before
