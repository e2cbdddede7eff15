"""Label image, mask and probabilities are what went in, small or streamed."""

import itertools
import os
import threading
import tracemalloc
from xml.etree import ElementTree

import numpy as np
import PIL.Image
import pytest
import tifffile

from nucseg_jax.data import images, planes
from nucseg_jax.inference.outputs import pictures, rasters, tiff
from nucseg_jax.inference.streams import Band

HEIGHTS = [(), (1, 68), (30, 0, 33, 2)]
WRITERS = {
    "labels": rasters.LabelsWriter,
    "mask": rasters.MaskWriter,
    "probs": rasters.ProbabilitiesWriter,
}


@pytest.fixture
def streaming(monkeypatch):
    """Makes every image a large one, of several tiles."""
    monkeypatch.setattr(rasters, "HELD_PIXELS", 0)
    monkeypatch.setattr(tiff, "TILE", 32)


def write(kind, path, plane, heights=()):
    with WRITERS[kind](path, plane.info) as writer:
        plane.feed(writer, heights=heights)
    assert os.listdir(path.parent) == [path.name]


def read_tiff(path):
    with tifffile.TiffFile(path) as file:
        return file.asarray(), file.pages[0], file.ome_metadata, len(file.pages)


@pytest.mark.parametrize("heights", HEIGHTS)
def test_small_labels_are_uint16_in_strips(tmp_path, plane, heights):
    write("labels", tmp_path / "a.tif", plane, heights)
    labels, page, _, pages = read_tiff(tmp_path / "a.tif")
    assert labels.dtype == np.uint16
    assert not page.is_tiled and page.compression.name == "ADOBE_DEFLATE"
    assert pages == 1
    np.testing.assert_array_equal(labels, plane.labels)


@pytest.mark.parametrize(("largest", "dtype"), [(65_535, "uint16"), (65_536, "uint32")])
def test_labels_get_32_bits_where_16_do_not_hold_them(
    tmp_path, make_plane, largest, dtype
):
    labels = np.array([[0, 1, largest]])
    write("labels", tmp_path / "a.tif", make_plane(labels))
    found = read_tiff(tmp_path / "a.tif")[0]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, labels)


def test_our_reader_reads_the_labels(tmp_path, plane):
    write("labels", tmp_path / "a.tif", plane)
    found = images.read_label_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, plane.labels)


@pytest.mark.parametrize("heights", HEIGHTS)
def test_streamed_labels_are_uint32_in_tiles(tmp_path, plane, streaming, heights):
    write("labels", tmp_path / "a.tif", plane, heights)
    labels, page, _, _ = read_tiff(tmp_path / "a.tif")
    assert labels.dtype == np.uint32
    assert page.is_tiled and page.tile == (32, 32)
    assert page.compression.name == "ADOBE_DEFLATE"
    np.testing.assert_array_equal(labels, plane.labels)


@pytest.mark.parametrize("heights", HEIGHTS)
def test_probabilities_are_one_page_a_target(tmp_path, plane, heights, monkeypatch):
    expected = np.round(np.moveaxis(plane.probs, 2, 0) * 255)
    write("probs", tmp_path / "small" / "a.tif", plane, heights)
    monkeypatch.setattr(rasters, "HELD_PIXELS", 0)
    monkeypatch.setattr(tiff, "TILE", 32)
    write("probs", tmp_path / "large" / "a.tif", plane, heights)
    for size in ("small", "large"):
        found, page, ome, pages = read_tiff(tmp_path / size / "a.tif")
        assert found.dtype == np.uint8
        assert pages == 2 and page.samplesperpixel == 1
        assert page.is_tiled == (size == "large")
        assert 'Name="foreground"' in ome and 'Name="boundary"' in ome
        np.testing.assert_array_equal(found, expected)


def test_a_small_mask_is_a_png(tmp_path, plane):
    write("mask", tmp_path / "a.png", plane, (20,))
    with PIL.Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        found = np.asarray(picture)
    np.testing.assert_array_equal(found, pictures.mask_picture(plane.labels > 0))


def test_a_streamed_mask_is_a_tiff(tmp_path, plane, streaming):
    write("mask", tmp_path / "a.tif", plane, (20,))
    found = read_tiff(tmp_path / "a.tif")[0]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, 255 * (plane.labels > 0))


@pytest.mark.parametrize("kind", ["labels", "probs"])
@pytest.mark.parametrize("streamed", [False, True])
def test_the_pixel_size_is_in_the_tags_and_in_the_ome_xml(
    tmp_path, make_plane, draw_nuclei, kind, streamed, monkeypatch
):
    monkeypatch.setattr(rasters, "HELD_PIXELS", 0 if streamed else 10**6)
    write(kind, tmp_path / "a.tif", make_plane(draw_nuclei(40, 50), pixel_size=0.325))
    _, page, ome, _ = read_tiff(tmp_path / "a.tif")
    for axis in "XY":
        pixels, centimetres = page.tags[f"{axis}Resolution"].value
        assert 1e4 * centimetres / pixels == pytest.approx(0.325)
        assert f'PhysicalSize{axis}="0.325"' in ome
        assert f'PhysicalSize{axis}Unit="µm"' in ome
    assert page.tags["ResolutionUnit"].value.name == "CENTIMETER"


def test_an_unknown_pixel_size_is_not_made_up(tmp_path, plane):
    write("labels", tmp_path / "a.tif", plane)
    _, page, ome, _ = read_tiff(tmp_path / "a.tif")
    assert "PhysicalSize" not in ome
    assert page.tags["ResolutionUnit"].value.name == "NONE"


def test_files_that_might_pass_4_gib_are_bigtiff(tmp_path, plane, streaming):
    uint32, large = np.dtype(np.uint32), (1, 30_000, 30_000)
    assert tiff.needs_bigtiff([(1, 40_000, 30_000)], uint32)
    assert not tiff.needs_bigtiff([large], uint32)
    # All levels count.
    assert tiff.needs_bigtiff([large, (1, 15_000, 15_000)], uint32)
    # No overflow of fixed integers.
    assert tiff.needs_bigtiff([(3, 2**31, 2**31)], uint32)


@pytest.mark.parametrize("kind", ["labels", "probs"])
def test_bigtiff_reads_back(tmp_path, plane, streaming, monkeypatch, kind):
    monkeypatch.setattr(tiff, "_CLASSIC_BYTES", 100)
    write(kind, tmp_path / "a.tif", plane)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
        assert file.asarray().shape[-2:] == plane.labels.shape


@pytest.fixture
def small_overview(streaming, monkeypatch):
    """Makes 70 x 90 pixels a pyramid of four levels."""
    monkeypatch.setattr(tiff, "OVERVIEW", 12)


def expected_planes(kind, plane):
    """What the full size holds, [C, H, W]."""
    if kind == "probs":
        return np.round(np.moveaxis(plane.probs, 2, 0) * 255)
    return (plane.labels if kind == "labels" else 255 * (plane.labels > 0))[None]


@pytest.mark.parametrize("heights", HEIGHTS)
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_level_takes_every_second_pixel_of_the_one_before(
    tmp_path, plane, small_overview, monkeypatch, kind, bigtiff, heights
):
    if bigtiff:
        monkeypatch.setattr(tiff, "_CLASSIC_BYTES", 100)
    write(kind, tmp_path / "a.tif", plane, heights)
    expected = expected_planes(kind, plane)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff == bigtiff
        (series,) = file.series
        assert len(series.levels) == 4
        for number, level in enumerate(series.levels):
            assert level.keyframe.is_reduced == (number > 0)
            assert level.keyframe.is_tiled and level.dtype == series.dtype
            found = level.asarray()
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)
            expected = expected[:, ::2, ::2]
    assert max(found.shape) <= 12 < 2 * max(found.shape)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_pyramid_is_one_image_of_the_full_size_to_our_reader(
    tmp_path, plane, small_overview, kind
):
    write(kind, tmp_path / "a.tif", plane)
    channel = "boundary" if kind == "probs" else None
    options = {"channel": channel, "axes": None, "max_pixels": 10**6}
    with planes.open_planes(tmp_path / "a.tif", **options) as found:
        (only,) = found
        pixels = only.read(slice(0, 70), slice(0, 90))
    np.testing.assert_array_equal(
        np.moveaxis(pixels, 2, 0), expected_planes(kind, plane)
    )


@pytest.mark.parametrize("kind", ["labels", "probs"])
def test_the_ome_xml_tells_of_the_full_size_alone(
    tmp_path, make_plane, draw_nuclei, small_overview, kind
):
    write(kind, tmp_path / "a.tif", make_plane(draw_nuclei(70, 90), pixel_size=0.5))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        ome, num_pages = file.ome_metadata, len(file.pages)
        resolutions = [
            level.keyframe.tags["XResolution"].value for level in file.series[0].levels
        ]
    (pixels,) = ElementTree.fromstring(ome).findall("{*}Image/{*}Pixels")
    sizes = {name: pixels.get(name) for name in ("SizeX", "SizeY", "PhysicalSizeX")}
    assert sizes == {"SizeX": "90", "SizeY": "70", "PhysicalSizeX": "0.5"}
    assert int(pixels.get("SizeC")) == num_pages
    # The tags of each level tell the size of its own pixels.
    found = [1e4 * centimetres / count for count, centimetres in resolutions]
    assert found == [0.5, 1, 2, 4]


def test_a_streamed_image_no_larger_than_an_overview_has_one_level(
    tmp_path, plane, streaming
):
    write("labels", tmp_path / "a.tif", plane)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.series[0].levels) == 1
        assert file.pages[0].subifds is None


def altered(original, level=0):
    """Writes one other pixel than asked for, in one level."""
    levels = itertools.count()

    def write(writer, data, **options):
        is_altered = next(levels) == level
        original(writer, alter(data) if is_altered else data, **options)

    def alter(data):
        if isinstance(data, np.ndarray):
            data = data.copy()
            data.reshape(-1)[-5] += 1
            return data
        return alter_tiles(data)

    def alter_tiles(tiles):
        for index, tile in enumerate(tiles):
            yield tile + (index == 4)

    return write


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["labels", "probs"])
def test_a_file_that_reads_back_differently_is_an_error(
    tmp_path, plane, monkeypatch, kind, streamed
):
    monkeypatch.setattr(rasters, "HELD_PIXELS", 0 if streamed else 10**6)
    monkeypatch.setattr(tiff, "TILE", 32)
    monkeypatch.setattr(
        tifffile.TiffWriter, "write", altered(tifffile.TiffWriter.write)
    )
    with pytest.raises(OSError, match="a.tif: reads back differently"):
        write(kind, tmp_path / "a.tif", plane)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_a_level_that_reads_back_differently_is_an_error(
    tmp_path, plane, small_overview, monkeypatch, kind
):
    # So that the level has the tile that is altered.
    monkeypatch.setattr(tiff, "TILE", 16)
    monkeypatch.setattr(
        tifffile.TiffWriter, "write", altered(tifffile.TiffWriter.write, level=1)
    )
    with pytest.raises(OSError, match="a.tif: reads back differently"):
        write(kind, tmp_path / "a.tif", plane)
    assert os.listdir(tmp_path) == []


def test_an_error_in_the_thread_surfaces_at_the_next_rows(
    tmp_path, plane, streaming, monkeypatch
):
    def fail(writer, tiles, **options):
        next(tiles)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile.TiffWriter, "write", fail)
    bands = 0
    with pytest.raises(OSError, match="No space left on device.*a.tif"):
        with rasters.LabelsWriter(tmp_path / "a.tif", plane.info) as writer:
            # More than the queue holds, and yet no deadlock.
            for band in plane.bands(*[33] * 2):
                writer.add_band(band)
                bands += 1
                writer._stream._thread.join()
    assert bands == 1
    assert os.listdir(tmp_path) == []


def test_an_error_amid_the_levels_leaves_nothing(
    tmp_path, plane, small_overview, monkeypatch
):
    threads, original = threading.active_count(), tifffile.TiffWriter.write

    def fail_in_a_level(writer, tiles, **options):
        if "subfiletype" in options:
            raise OSError(28, "No space left on device")
        original(writer, tiles, **options)

    monkeypatch.setattr(tifffile.TiffWriter, "write", fail_in_a_level)
    with pytest.raises(OSError, match="No space left on device.*a.tif"):
        write("probs", tmp_path / "a.tif", plane)
    assert threading.active_count() == threads
    assert os.listdir(tmp_path) == []


def test_leaving_early_ends_the_thread(tmp_path, plane, small_overview):
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="stop"):
        with rasters.ProbabilitiesWriter(tmp_path / "a.tif", plane.info) as writer:
            writer.add_band(plane.bands(40)[0])
            raise RuntimeError("stop")
    assert threading.active_count() == threads
    assert os.listdir(tmp_path) == []


def test_a_large_image_is_never_in_memory(tmp_path, make_plane):
    """34 megapixels, of which the labels alone would be 136 MB."""
    info = make_plane(np.zeros((1, 1), np.int32)).info
    info = type(info)(**{**vars(info), "height": 17_000, "width": 2_000})
    assert not rasters.is_held(info)
    picture = np.zeros((1000, 2000, 3), np.uint8)
    tracemalloc.start()
    writers = [make(tmp_path / f"{kind}.tif", info) for kind, make in WRITERS.items()]
    for top in range(0, info.height, 1000):
        labels = np.full((1000, 2000), top + 1, np.int32)
        probs = np.full((1000, 2000, 2), 0.5, np.float32)
        for writer in writers:
            writer.add_band(Band(top, labels, probs, picture))
    for writer in writers:
        writer.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A band and what is made of it: 8 MB of labels, 16 of probabilities.
    assert peak < 80e6
    with tifffile.TiffFile(tmp_path / "labels.tif") as file:
        levels = file.series[0].levels
        assert len(levels) == 6
        for number, level in enumerate(levels):
            rows = np.arange(0, 17_000, 2**number)
            np.testing.assert_array_equal(
                level.asarray()[:, 7], 1 + rows // 1000 * 1000
            )
