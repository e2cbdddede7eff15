import numpy as np
import pytest
import skimage.draw
import skimage.measure
from hypothesis import given, settings
from hypothesis import strategies as st

from nucseg_jax.config import DecodingConfig
from nucseg_jax.inference import windows
from nucseg_jax.inference.instances import label_nuclei
from nucseg_jax.inference.segmenter import choose_rim
from tests.helpers import same_partition


def decode(probs):
    return skimage.measure.label(probs[..., 0] > 0.5, connectivity=1).astype(np.int32)


def run(mask, *, core, halo, band=7, rim=1, decode=decode):
    """Returns the stitched labels, and the number of pixels of each id by window."""
    probs = mask[..., None].astype(np.float32)
    bands = (probs[k : k + band] for k in range(0, len(probs), band))
    rows, found = [], []
    for item in windows.find_nuclei(
        bands, mask.shape, decode, core=core, halo=halo, rim=rim
    ):
        if isinstance(item, windows.Settled):
            assert item.top == sum(map(len, rows))
            np.testing.assert_array_equal(
                item.probs, probs[item.top :][: len(item.probs)]
            )
            rows.append(item.labels)
        else:
            found.append(item)
    return np.concatenate(rows), found


def discs(seed, shape, radius, number):
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(number):
        centre = rng.integers(0, shape)
        mask[skimage.draw.disk(centre, rng.integers(1, radius + 1), shape=shape)] = True
    return mask


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**16),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(1, 40),
    st.integers(1, 2),
)
def test_windows_find_what_the_whole_holds(seed, shape, band, rim):
    mask = discs(seed, shape, radius=3, number=12)
    whole = decode(mask[..., None])
    # Clusters may be wider than a single disc: what is compared must fit the halo.
    spans = [r.bbox for r in skimage.measure.regionprops(whole)]
    for top, left, bottom, right in spans:
        if max(bottom - top, right - left) > 20:
            mask[top:bottom, left:right] = False
    whole = decode(mask[..., None])
    labels, _ = run(mask, core=(24, 37), halo=12, band=band, rim=rim)
    assert same_partition(labels, whole)


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize(("radius", "cut"), [(30, 14), (40, 16), (50, 18)])
def test_a_nucleus_of_which_the_last_row_holds_a_label_of_its_own_stays_whole(
    radius, cut, is_turned
):
    """The watershed parts what the window's end leaves of these discs."""
    mask = np.zeros((700, 260), bool)
    mask[skimage.draw.disk((300, 130), radius)] = True
    core = (300 + cut, 2048)
    if is_turned:
        mask, core = mask.T, (128, 300 + cut - 128)
    decoding = DecodingConfig()
    labels, found = run(
        mask,
        core=core,
        halo=128,
        band=core[0],
        rim=choose_rim(decoding, 1),
        decode=lambda probs: label_nuclei(probs, ("foreground",), decoding),
    )
    assert len(found) > 1
    np.testing.assert_array_equal(labels, mask)


def test_a_nucleus_on_the_corner_of_four_windows_is_one():
    mask = np.zeros((64, 64), bool)
    mask[skimage.draw.disk((32, 32), 7)] = True
    labels, found = run(mask, core=(32, 32), halo=10)
    np.testing.assert_array_equal(labels, mask)
    assert sum(item.labels.any() for item in found) == 1


@pytest.mark.parametrize("row", range(20, 60))
def test_a_nucleus_that_is_left_to_windows_below_is_not_taken_by_its_tip(row):
    """A window to the right sees of it what the lower edge does not cut off."""
    mask = np.zeros((96, 96), bool)
    mask[skimage.draw.ellipse(row, 10, 5, 9)] = True
    labels, _ = run(mask, core=(32, 26), halo=10, band=64)
    np.testing.assert_array_equal(labels, mask)


def test_a_nucleus_that_fills_the_overlap_of_two_windows_is_one():
    for part in (np.s_[22:42, 3:9], np.s_[3:9, 22:42], np.s_[22:42, 22:42]):
        mask = np.zeros((64, 64), bool)
        mask[part] = True
        labels, _ = run(mask, core=(32, 32), halo=10, band=42)
        np.testing.assert_array_equal(labels, mask)


def test_each_nucleus_is_whole_in_one_window():
    mask = discs(3, (150, 130), radius=4, number=60)
    labels, found = run(mask, core=(40, 40), halo=30)
    areas = np.bincount(labels.ravel())
    seen = {}
    for item in found:
        for id_, area in zip(*np.unique(item.labels, return_counts=True), strict=True):
            if id_:
                assert id_ not in seen
                seen[id_] = area
        expected = labels[item.rows, item.columns]
        np.testing.assert_array_equal(
            item.labels[item.labels > 0], expected[item.labels > 0]
        )
    assert seen == {k: int(areas[k]) for k in range(1, len(areas))}


def test_ids_are_unique_and_without_gaps():
    labels, _ = run(discs(5, (100, 200), 3, 80), core=(32, 50), halo=20)
    np.testing.assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (32, 32), (33, 31)])
def test_small_and_thin_images(shape):
    labels, _ = run(np.ones(shape, bool), core=(32, 32), halo=100)
    np.testing.assert_array_equal(labels, np.ones(shape))


def test_a_nucleus_larger_than_the_halo_is_parted_but_not_lost():
    mask = np.ones((100, 100), bool)
    labels, _ = run(mask, core=(20, 20), halo=4)
    assert (labels > 0).mean() > 0.9


def test_memory_holds_a_few_rows():
    """The canvas never grows beyond a window's rows and one band."""
    sizes = []

    def watching(probs):
        sizes.append(len(probs))
        return decode(probs)

    mask = np.zeros((2000, 8), bool)
    bands = (mask[k : k + 10, :, None].astype(np.float32) for k in range(0, 2000, 10))
    for item in windows.find_nuclei(bands, mask.shape, watching, core=(50, 50), halo=5):
        if isinstance(item, windows.Settled):
            assert len(item.labels) <= 60
            assert item.labels.base is None and item.probs.base is None
    assert max(sizes) <= 60
