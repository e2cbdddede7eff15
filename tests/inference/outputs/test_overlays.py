"""Overlays show each nucleus where it is, at a size that can be looked at."""

import os

import numpy as np
import PIL.Image
import pytest
import skimage.segmentation

from nucseg_jax.inference.outputs import overlays, pictures


def gray(shape, value=100):
    """A picture with some contrast, which keeps its values when stretched."""
    picture = np.full((*shape, 3), value, np.uint8)
    rows = -(-shape[0] // 80)
    picture[:rows], picture[-rows:] = 0, 255
    return picture


def read(path):
    with PIL.Image.open(path) as picture:
        return picture.format, np.asarray(picture)


def test_outlines_are_those_of_scikit_image(plane):
    expected = skimage.segmentation.find_boundaries(
        plane.labels, connectivity=1, mode="inner"
    )
    np.testing.assert_array_equal(overlays.find_outlines(plane.labels), expected)


def test_wider_outlines_stay_inside_and_keep_touching_nuclei_apart():
    labels = np.zeros((20, 30), np.int32)
    labels[2:18, 3:15], labels[2:18, 15:27] = 1, 2
    wide = overlays.find_outlines(labels, width=2)
    expected = labels > 0
    expected[4:16, 5:13] = expected[4:16, 17:25] = False
    np.testing.assert_array_equal(wide, expected)


@pytest.mark.parametrize("shape", [(2120, 80), (80, 2120)])
def test_an_overlay_of_full_size_changes_outlines_and_ids_only(draw_nuclei, shape):
    labels = draw_nuclei(*shape, spacing=40)
    picture = gray(shape)
    plain = overlays.stretch(picture).astype(int)
    overlay = overlays.draw_overlay(picture, labels).astype(int)
    changed = (overlay != plain).any(axis=2)
    assert not changed[labels == 0].any()
    outlines = overlays.find_outlines(labels)
    assert (overlay[outlines] == pictures.OUTLINE_COLOUR).all(axis=1).mean() > 0.95
    for label in (20, 40, 60, 80):
        inside = (labels == label) & ~outlines
        assert (plain[inside] < 200).all()
        # Its id in white with a dark rim, and around it the picture.
        assert (overlay[inside] > 200).all(axis=1).sum() > 5
        assert (overlay[inside] < 50).all(axis=1).sum() > 5
        assert 0.1 < changed[inside].mean() < 0.6


@pytest.mark.parametrize(
    ("side", "zoom"), [(1, 4), (256, 4), (512, 4), (700, 3), (1024, 2), (1388, 1)]
)
def test_small_images_are_enlarged(side, zoom):
    labels = np.zeros((10, side), np.int32)
    assert overlays.draw_overlay(gray(labels.shape), labels).shape == (
        10 * zoom,
        side * zoom,
        3,
    )


def test_outlines_of_enlarged_images_follow_the_pixels(draw_nuclei):
    labels = draw_nuclei(40, 500, spacing=20)
    overlay = overlays.draw_overlay(gray(labels.shape), labels)
    large = labels.repeat(4, axis=0).repeat(4, axis=1)
    yellow = (overlay == pictures.OUTLINE_COLOUR).all(axis=2)
    assert yellow[overlays.find_outlines(large)].mean() > 0.95
    assert not yellow[large == 0].any()


def lettered(overlay, picture):
    """Where letters are: what is neither the picture nor an outline; bool [H, W]."""
    changed = (overlay != overlays.stretch(picture)).any(axis=2)
    return changed & (overlay != pictures.OUTLINE_COLOUR).any(axis=2)


def test_ids_are_left_out_where_there_is_no_room():
    labels = np.zeros((16, 3000), np.int32)
    labels[2:6, 5:9], labels[2:14, 100:130] = 123_456, 7
    picture = gray(labels.shape)
    letters = lettered(overlays.draw_overlay(picture, labels), picture)
    assert letters[2:14, 100:130].any()
    assert not letters[:, :100].any()


def test_ids_at_the_edge_are_moved_inside():
    labels = np.zeros((160, 3000), np.int32)
    labels[65:95, :15] = 888
    labels[65:95, 100:115] = 889
    picture = gray(labels.shape)
    letters = lettered(overlays.draw_overlay(picture, labels), picture)
    widths = [letters[:, part].any(axis=0).sum() for part in (np.s_[:50], np.s_[50:])]
    assert abs(widths[0] - widths[1]) <= 1


def test_the_id_of_a_crescent_is_not_written_on_its_neighbour():
    labels = np.zeros((60, 3000), np.int32)
    labels[5:55, 105:155] = 1
    labels[15:45, 115:145] = 2
    picture = gray(labels.shape)
    overlay = overlays.draw_overlay(picture, labels)
    alone = overlays.draw_overlay(picture, np.where(labels == 2, 2, 0))
    inside = labels == 2
    np.testing.assert_array_equal(overlay[inside], alone[inside])


def test_no_nuclei_give_the_picture_alone():
    picture = gray((12, 2500))
    overlay = overlays.draw_overlay(picture, np.zeros((12, 2500), np.int32))
    np.testing.assert_array_equal(overlay, overlays.stretch(picture))


def test_stretch_is_that_of_pictures_to_a_step_of_gray():
    rng = np.random.default_rng(0)
    picture = rng.normal(90, 12, (60, 70, 3)).clip(0, 255).astype(np.uint8)
    expected = pictures.stretch_contrast(picture / 255) * 255
    levels = 255 / np.ptp(np.percentile(picture, (1, 99.8)))
    assert np.abs(overlays.stretch(picture) - expected).max() <= levels + 1
    assert (overlays.stretch(np.full((4, 4, 3), 9, np.uint8)) == 0).all()
    assert overlays.stretch(np.zeros((0, 4, 3), np.uint8)).shape == (0, 4, 3)


@pytest.mark.parametrize("largest", [4000, 45, 16, 1])
@pytest.mark.parametrize("heights", [(1,), (13, 30, 7)])
@pytest.mark.parametrize("kind", ["OverlayWriter", "ThumbnailWriter"])
def test_bands_of_any_height_give_the_same_picture(
    tmp_path, plane, monkeypatch, largest, heights, kind
):
    make = getattr(overlays, kind)
    monkeypatch.setattr(make, "longest_side", largest)
    found = []
    for name, cut in (("whole", ()), ("bands", heights)):
        with make(tmp_path / name, plane.info) as writer:
            plane.feed(writer, heights=cut)
        found.append(read(tmp_path / name))
    assert found[0][0] == ("PNG" if kind == "OverlayWriter" else "JPEG")
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert sorted(os.listdir(tmp_path)) == ["bands", "whole"]


@pytest.mark.parametrize("shape", [(3, 50), (50, 3), (41, 40), (1, 1)])
def test_large_images_are_reduced_to_fit(tmp_path, make_plane, monkeypatch, shape):
    monkeypatch.setattr(overlays.ThumbnailWriter, "longest_side", 10)
    plane = make_plane(np.ones(shape, np.int32))
    with overlays.ThumbnailWriter(tmp_path / "a.jpg", plane.info) as writer:
        plane.feed(writer)
    height, width, _ = read(tmp_path / "a.jpg")[1].shape
    factor = -(-max(shape) // 10)
    assert (height, width) == tuple(-(-n // factor) for n in shape)
    assert max(height, width) <= 10


def test_a_reduced_overlay_shows_means_and_middles(tmp_path, make_plane, monkeypatch):
    monkeypatch.setattr(overlays.OverlayWriter, "longest_side", 20)
    labels = np.zeros((60, 60), np.int32)
    labels[15:45, 15:45] = 1
    plane = make_plane(labels)
    with overlays.OverlayWriter(tmp_path / "a.png", plane.info) as writer:
        plane.feed(writer, heights=(25,))
        picture, reduced = writer._gather()
    np.testing.assert_array_equal(reduced, labels[1::3, 1::3])
    means = plane.picture.reshape(20, 3, 20, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(picture, means, atol=0.51)


def test_a_thumbnail_tints_nuclei_alone():
    labels = np.zeros((40, 40), np.int32)
    labels[10:20, 10:20] = 1
    picture = gray((40, 40))
    thumbnail = overlays.draw_thumbnail(picture, labels).astype(int)
    plain = overlays.stretch(picture).astype(int)
    np.testing.assert_array_equal(thumbnail[labels == 0], plain[labels == 0])
    assert (thumbnail[labels == 1] != plain[labels == 1]).any(axis=1).all()
    red, green, blue = thumbnail[15, 15]
    assert red > green > blue
