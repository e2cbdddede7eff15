"""Blocks: what each sees, and that each nucleus is found once in any order of tasks."""

import itertools

import numpy as np
import pytest
import skimage.draw
import skimage.measure
from hypothesis import given, settings
from hypothesis import strategies as st

from nucseg_jax.inference.blocks import (
    Blocks,
    assemble,
    claim,
    number_blocks,
    round_of,
)
from tests.helpers import same_partition

SHAPES = st.tuples(st.integers(1, 90), st.integers(1, 90))


def decode(mask):
    return skimage.measure.label(mask, connectivity=1).astype(np.int32)


def run(mask, blocks, order):
    """Segments blocks one after the other; returns the label image and the counts."""
    own = {}
    for block in order:
        region, before = blocks.region(block), blocks.before(block)
        known = assemble(blocks, region, before, own.get, dict.fromkeys(before, 0))
        own[block] = claim(blocks, block, decode(mask[region]), known)
    counts = {block: int(labels.max(initial=0)) for block, labels in own.items()}
    whole = np.zeros(mask.shape, np.uint32)
    for block in blocks.places:
        core = blocks.core(block)
        firsts = number_blocks(counts)
        whole[core] = assemble(blocks, core, blocks.around(block), own.get, firsts)
    return whole, counts


def draw_discs(seed, shape, most):
    """Discs, of which clusters wider or higher than `most` pixels are taken out."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(25):
        centre = rng.integers(0, shape)
        mask[skimage.draw.disk(centre, rng.integers(1, 5), shape=shape)] = True
    for part in skimage.measure.regionprops(decode(mask)):
        top, left, bottom, right = part.bbox
        if max(bottom - top, right - left) > most:
            mask[top:bottom, left:right] = False
    return mask


@settings(max_examples=60)
@given(st.integers(0, 2**16), SHAPES, st.randoms(use_true_random=False))
def test_blocks_in_any_order_of_a_round_find_what_the_whole_holds(seed, shape, random):
    # Anything that the overlap of two blocks holds is whole in one of them.
    blocks = Blocks(*shape, side=24, halo=10)
    mask = draw_discs(seed, shape, most=20)
    order = blocks.places
    random.shuffle(order)
    order.sort(key=round_of)
    labels, counts = run(mask, blocks, order)
    assert same_partition(labels, decode(mask))
    ids = np.unique(labels[labels > 0])
    np.testing.assert_array_equal(ids, np.arange(1, sum(counts.values()) + 1))
    np.testing.assert_array_equal(
        labels, run(mask, blocks, sorted(order, key=round_of))[0]
    )


def test_a_nucleus_on_the_corner_of_four_blocks_is_one():
    mask = np.zeros((64, 64), bool)
    mask[skimage.draw.disk((32, 32), 7)] = True
    labels, counts = run(
        mask, Blocks(64, 64, side=32, halo=10), [(0, 0), (0, 1), (1, 0), (1, 1)]
    )
    np.testing.assert_array_equal(labels, mask)
    assert counts == {(0, 0): 1, (0, 1): 0, (1, 0): 0, (1, 1): 0}


def test_a_nucleus_that_fills_the_overlap_of_two_blocks_is_one():
    blocks = Blocks(64, 64, side=32, halo=10)
    for part in (np.s_[22:42, 3:9], np.s_[3:9, 22:42], np.s_[22:42, 22:42]):
        mask = np.zeros((64, 64), bool)
        mask[part] = True
        labels, _ = run(mask, blocks, sorted(blocks.places, key=round_of))
        np.testing.assert_array_equal(labels, mask)


def test_a_nucleus_larger_than_the_overlap_is_parted_but_not_lost():
    blocks = Blocks(100, 100, side=50, halo=4)
    order = sorted(blocks.places, key=round_of)
    labels, _ = run(np.ones((100, 100), bool), blocks, order)
    assert (labels > 0).mean() > 0.9


@given(SHAPES, st.integers(1, 40), st.integers(0, 20))
def test_cores_cover_the_image_and_blocks_of_a_round_share_no_pixel(shape, side, halo):
    if side < 2 * halo:
        return
    blocks = Blocks(*shape, side=side, halo=halo)
    covered = np.zeros(shape, int)
    for block in blocks.places:
        covered[blocks.core(block)] += 1
    assert (covered == 1).all()
    for number in range(4):
        seen = np.zeros(shape, int)
        for block in blocks.places:
            if round_of(block) == number:
                seen[blocks.region(block)] += 1
        assert seen.max() <= 1


def test_a_block_knows_all_that_share_pixels_with_it_and_waits_for_some():
    blocks = Blocks(70, 70, side=10, halo=5)
    for one, other in itertools.permutations(blocks.places, 2):
        seen = np.zeros((70, 70), int)
        seen[blocks.region(one)] += 1
        seen[blocks.region(other)] += 1
        if seen.max() == 2:
            assert other in blocks.around(one)
            assert (other in blocks.before(one)) != (one in blocks.before(other))


def test_blocks_too_small_for_nuclei_are_refused():
    with pytest.raises(ValueError, match="of up to 80: take larger ones"):
        Blocks(100, 100, side=79, halo=40)
