"""Levels equal the image taken at every second pixel, again and again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucseg_jax.inference.outputs import pyramid

IMAGE = np.random.default_rng(0).integers(0, 2**31, (53, 38))


def halved(times):
    level = IMAGE
    for _ in range(times):
        level = level[::2, ::2]
    return level


@given(st.lists(st.integers(0, 53)), st.integers(0, 6))
def test_levels_do_not_depend_on_how_rows_come(cuts, level):
    edges = sorted([0, *cuts, 53])
    parts = [
        pyramid.sample(IMAGE[top:stop], top, level)
        for top, stop in zip(edges, edges[1:], strict=False)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), halved(level))


@pytest.mark.parametrize(
    ("most", "count"), [(53, 1), (52, 2), (27, 2), (26, 3), (1, 7)]
)
def test_the_last_level_is_the_first_that_is_small_enough(most, count):
    shapes = pyramid.level_shapes(53, 38, most)
    assert shapes == [halved(level).shape for level in range(count)]
