"""Rows come out as they went in, in blocks of the height asked for."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nucseg_jax.inference.outputs.rows import RowBlocks


@given(st.lists(st.integers(0, 9), max_size=9), st.integers(1, 7))
def test_blocks_hold_all_rows_in_order(heights, block_height):
    rows = np.arange(2 * sum(heights)).reshape(-1, 2)
    blocks, found = RowBlocks(block_height), []
    for band in np.split(rows, np.cumsum(heights)[:-1]) if heights else []:
        found += blocks.push(band)
    assert all(len(block) == block_height for block in found)
    rest = list(blocks.rest())
    assert len(rest) <= 1 and all(0 < len(block) < block_height for block in rest)
    np.testing.assert_array_equal(np.concatenate([rows[:0], *found, *rest]), rows)
    assert not list(blocks.rest())


def test_blocks_come_as_soon_as_they_are_complete():
    blocks = RowBlocks(3)
    counts = [len(list(blocks.push(np.zeros((n, 2))))) for n in (2, 1, 7, 0, 1)]
    assert counts == [0, 1, 2, 0, 0]
