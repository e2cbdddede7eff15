"""Outlines, drawn again, give the pixels that they were traced from."""

import numpy as np
import pytest
import skimage.measure
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nucseg_jax.inference.outputs.outlines import trace_outlines

labels_of_any_kind = hnp.arrays(
    np.int32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.sampled_from([0, 1, 1, 2, 1_000_000]),
)


def draw_ring(ring, shape):
    """The pixels inside a ring; bool. Their centres never lie on it."""
    return skimage.measure.grid_points_in_poly(shape, ring[:, ::-1] - 0.5)


def draw_polygon(polygon, shape):
    """The pixels of a polygon, whose holes must lie inside; bool."""
    outer, *holes = (draw_ring(ring, shape) for ring in polygon)
    for hole in holes:
        assert (hole & outer).sum() == hole.sum() > 0
        outer = outer & ~hole
    return outer


def draw(outlines, shape):
    labels = np.zeros(shape, np.int64)
    for outline in outlines:
        for polygon in outline.polygons:
            pixels = draw_polygon(polygon, shape)
            assert not labels[pixels].any()
            labels[pixels] = outline.id
    return labels


def area(ring):
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    return (x0 * y1 - x1 * y0).sum() / 2


@settings(deadline=None, max_examples=300)
@given(labels_of_any_kind)
def test_outlines_drawn_again_give_the_labels(labels):
    outlines = trace_outlines(labels)
    np.testing.assert_array_equal(draw(outlines, labels.shape), labels)
    ids = [outline.id for outline in outlines]
    assert ids == sorted(set(labels[labels > 0].tolist()))


@settings(deadline=None, max_examples=300)
@given(labels_of_any_kind)
def test_rings_are_simple_turn_the_right_way_and_hold_corners_only(labels):
    for outline in trace_outlines(labels):
        for outer, *holes in outline.polygons:
            assert area(outer) > 0
            assert all(area(hole) < 0 for hole in holes)
            for ring in (outer, *holes):
                assert len({tuple(corner) for corner in ring.tolist()}) == len(ring)
                steps = np.diff(ring, axis=0, append=ring[:1])
                assert ((steps == 0).sum(axis=1) == 1).all()
                # Level and upright sides take turns.
                assert (np.diff((steps[:, 0] == 0).astype(int)) != 0).all()


@settings(deadline=None, max_examples=100)
@given(labels_of_any_kind)
def test_there_are_as_many_polygons_as_parts_connected_by_edges(labels):
    for outline in trace_outlines(labels):
        parts = skimage.measure.label(labels == outline.id, connectivity=1)
        assert len(outline.polygons) == parts.max()


def test_a_pixel_is_the_square_from_its_corner_to_the_next():
    labels = np.zeros((4, 5), np.int32)
    labels[2, 3] = 7
    (outline,) = trace_outlines(labels, top=100, left=1000)
    ((ring,),) = outline.polygons
    assert outline.id == 7
    assert {tuple(corner) for corner in ring.tolist()} == {
        (1003, 102),
        (1004, 102),
        (1004, 103),
        (1003, 103),
    }


def test_holes_of_nested_parts_belong_to_the_part_around_them():
    """Three rings in one another, of one nucleus, and a touch at a corner."""
    labels = np.zeros((15, 15), np.int32)
    for margin in range(0, 6, 2):
        labels[margin : 15 - margin, margin : 15 - margin] = 1
        labels[margin + 1 : 14 - margin, margin + 1 : 14 - margin] = 0
    labels[1, 1] = 1
    (outline,) = trace_outlines(labels)
    assert sorted(len(polygon) for polygon in outline.polygons) == [2, 2, 2]
    np.testing.assert_array_equal(draw([outline], labels.shape), labels)


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0), (3, 4)])
def test_no_nuclei_have_no_outlines(shape):
    assert trace_outlines(np.zeros(shape, np.int32)) == []


def test_large_coordinates_stay_exact():
    labels = np.zeros((3, 60_000), np.int32)
    labels[1, 59_990:] = 2**31 - 1
    (outline,) = trace_outlines(labels, top=10**6)
    ((ring,),) = outline.polygons
    assert ring.max(axis=0).tolist() == [60_000, 10**6 + 2]
