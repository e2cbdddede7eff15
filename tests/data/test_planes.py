import concurrent.futures
import pathlib
import subprocess
import sys
import tracemalloc

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from nucseg_jax.data.errors import ImageError
from nucseg_jax.data.formats import regions, tiff_pages
from nucseg_jax.data.planes import can_open, open_planes, plane_of_array
from tests.data.files import (
    encode,
    encode_png16,
    encode_tiff,
    noise,
    write_ome_zarr,
)

GRAY = noise((70, 50))
DEEP = noise((70, 50), np.uint16)
RGB = noise((70, 50, 3))
STACK = noise((2, 3, 70, 50), np.uint16)


def write(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path


def tiff(folder: pathlib.Path, pixels: np.ndarray, **options) -> pathlib.Path:
    return write(folder / "a.tif", encode_tiff(pixels, **options))


def ome_tiff(folder: pathlib.Path, pixels: np.ndarray, **metadata) -> pathlib.Path:
    data = encode_tiff(pixels, ome=True, metadata=metadata, tile=(16, 16))
    return write(folder / "a.ome.tif", data)


# Regions.

LAYOUTS = {
    "gray.png": lambda: encode(GRAY, "PNG"),
    "rgb.jpg": lambda: encode(RGB, "JPEG"),
    "deep.png": lambda: encode_png16(DEEP),
    "raw.tif": lambda: encode_tiff(DEEP, byteorder=">"),
    "tiles.tif": lambda: encode_tiff(DEEP, tile=(16, 32), compression="zlib"),
    "strips.tif": lambda: encode_tiff(
        RGB, photometric="rgb", rowsperstrip=7, compression="lzw", predictor=2
    ),
    "planes.tif": lambda: encode_tiff(
        np.moveaxis(RGB, -1, 0),
        photometric="rgb",
        planarconfig="separate",
        tile=(32, 16),
    ),
    "turned.tif": lambda: encode_tiff(
        DEEP, tile=(16, 16), extratags=[(274, 3, 1, 8, True)]
    ),
    "bits.tif": lambda: encode_tiff(noise((70, 50), bool), rowsperstrip=9),
    "jpeg.tif": lambda: encode_tiff(GRAY, compression="jpeg", tile=(16, 16)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, pathlib.Path]:
    folder = tmp_path_factory.mktemp("files")
    made = {name: write(folder / name, make()) for name, make in LAYOUTS.items()}
    for version, axes, pixels in (
        ("0.4", "zyx", STACK[0]),
        ("0.5", "tcyx", STACK[:1]),
    ):
        name = f"image_{version}.zarr"
        chunks = (1,) * (pixels.ndim - 2) + (16, 32)
        made[name] = write_ome_zarr(
            folder / name, pixels, axes, version=version, chunks=chunks
        )
    return made


spans = st.tuples(st.integers(0, 70), st.integers(0, 70)).filter(
    lambda span: span[0] != span[1]
)


@pytest.mark.parametrize("name", [*LAYOUTS, "image_0.4.zarr", "image_0.5.zarr"])
@given(rows=spans, columns=spans)
def test_a_region_is_a_part_of_the_whole(files, name, rows, columns):
    channel = "1" if name == "image_0.5.zarr" else None
    with pytest.MonkeyPatch.context() as patch:
        # So that a picture has several blocks, whatever its format.
        patch.setattr(tiff_pages, "_RAW_BLOCK_BYTES", 999)
        patch.setattr("nucseg_jax.data.formats.zarr_blocks._SMALLEST_BLOCK_SIDE", 20)
        with open_planes(files[name], channel=channel) as planes:
            plane = planes[-1]
            whole = plane.read()
            assert whole.shape == plane.shape
            height, width = plane.shape[:2]
            region = (
                slice(min(rows) % height, max(rows)),
                slice(min(columns) % width, max(columns)),
            )
            if 0 in whole[region].shape:
                with pytest.raises(ImageError, match="has no pixels at slice"):
                    plane.read(*region)
            else:
                np.testing.assert_array_equal(plane.read(*region), whole[region])


def test_what_is_read_may_be_changed(files):
    for name, path in files.items():
        channel = "1" if name == "image_0.5.zarr" else None
        with open_planes(path, channel=channel) as (plane, *_):
            first = plane.read()
            kept = first.copy()
            first[...] = 0
            np.testing.assert_array_equal(plane.read(), kept)


def test_a_step_is_refused(files):
    with open_planes(files["gray.png"]) as (plane,):
        with pytest.raises(ImageError, match="step 1, not 2"):
            plane.read(slice(0, 10, 2))


@pytest.mark.parametrize("name", (*LAYOUTS, "image_0.4.zarr"))
def test_threads_read_at_the_same_time(files, name, monkeypatch):
    monkeypatch.setattr(regions, "_CACHE_BYTES", 4096)
    monkeypatch.setattr(regions, "_MOST_CACHE_BYTES", 4096)
    with open_planes(files[name]) as planes:
        whole = planes[-1].read()
    tops = np.random.default_rng(0).integers(0, whole.shape[0] - 9, 100)
    with open_planes(files[name]) as planes:

        def is_right(top: int) -> bool:
            rows = slice(top, top + 9)
            return np.array_equal(planes[-1].read(rows), whole[rows])

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            assert all(threads.map(is_right, tops.tolist()))


def test_threads_read_different_images_of_a_file(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for pixels in STACK[0]:
            options = {"compression": "zlib", "tile": (16, 16)}
            writer.write(pixels, photometric="minisblack", **options)
    with open_planes(path) as planes:

        def is_right(number: int) -> bool:
            pixels = STACK[0, number % 3, :, :, np.newaxis]
            return np.array_equal(planes[number % 3].read(), pixels)

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            assert all(threads.map(is_right, range(60)))


@pytest.mark.parametrize("kind", ("tif", "zarr"))
def test_many_images_share_the_memory_for_blocks(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(regions, "_CACHE_BYTES", 1 << 20)
    path = tmp_path / f"a.{kind}"
    shape, num_images = (512, 1024), 12
    if kind == "tif":
        with tifffile.TiffWriter(path, ome=True) as writer:
            for _ in range(num_images):
                options = {"compression": "zlib", "tile": (256, 256)}
                writer.write(np.ones(shape, np.uint8), **options)
    else:
        group = zarr.open_group(path, mode="w", zarr_format=2)
        group.attrs["bioformats2raw.layout"] = 3
        for number in range(num_images):
            pixels = np.ones(shape, np.uint8)
            write_ome_zarr(path / str(number), pixels, "yx", chunks=(256, 256))
    with open_planes(path) as planes:
        assert len(planes) == num_images
        tracemalloc.start()
        try:
            assert all(plane.read().all() for plane in planes)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert kept < 2.5e6  # Of the 6 MB of all images.


@pytest.mark.parametrize("name", (*LAYOUTS, "image_0.4.zarr"))
def test_nothing_is_read_after_the_context(files, name):
    with open_planes(files[name]) as planes:
        planes[0].read(slice(0, 1))
    with pytest.raises(ImageError, match="closed"):
        planes[0].read(slice(0, 1))


def test_an_error_of_the_caller_stays_as_it_is(files):
    with pytest.raises(KeyError), open_planes(files["gray.png"]):
        raise KeyError


# What is decoded, and how much of it is kept.


def test_a_whole_file_is_decoded_once_and_at_need(tmp_path, monkeypatch):
    calls = []
    png_decode = imagecodecs.png_decode

    def decode(data):
        calls.append(len(data))
        return png_decode(data)

    monkeypatch.setattr(imagecodecs, "png_decode", decode)
    path = write(tmp_path / "a.png", encode_png16(DEEP))
    with open_planes(path) as (plane,):
        assert not calls
        for top in range(0, 70, 10):
            plane.read(slice(top, top + 10))
    assert len(calls) == 1


def test_a_file_that_failed_fails_again(tmp_path):
    path = write(tmp_path / "a.jpg", encode(GRAY, "JPEG")[:-300])
    with open_planes(path) as (plane,):
        for _ in range(3):
            with pytest.raises(ImageError, match=r"a\.jpg"):
                plane.read(slice(0, 8))


@pytest.mark.parametrize("options", ({"tile": (16, 16)}, {"rowsperstrip": 16}))
@pytest.mark.parametrize("band", (10, 33))
def test_bands_decode_each_block_once(tmp_path, monkeypatch, options, band):
    decoded = []
    decode = tiff_pages.Pages._decode

    def count(self, *place):
        decoded.append(place)
        return decode(self, *place)

    monkeypatch.setattr(tiff_pages.Pages, "_decode", count)
    monkeypatch.setattr(regions, "_CACHE_BYTES", 0)
    path = tiff(tmp_path, DEEP, compression="zlib", **options)
    with open_planes(path) as (plane,):
        for top in range(0, 70, band):
            plane.read(slice(top, min(top + band, 70)))
    assert len(decoded) == len(set(decoded)) == (20 if "tile" in options else 5)


def test_a_region_decodes_what_it_touches(tmp_path, monkeypatch):
    path = tiff(tmp_path, DEEP, compression="zlib", tile=(16, 16))
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].dataoffsets
    data = bytearray(path.read_bytes())
    data[offsets[0] + 9] ^= 255  # Only the first tile is damaged.
    path.write_bytes(data)
    with open_planes(path) as (plane,):
        found = plane.read(slice(0, 70), slice(16, 50))
        np.testing.assert_array_equal(found[..., 0], DEEP[:, 16:])
        with pytest.raises(ImageError):
            plane.read()


SIDE = 8000


@pytest.fixture(scope="module")
def large_files(tmp_path_factory) -> dict[str, pathlib.Path]:
    """64 megapixels in different containers."""
    folder = tmp_path_factory.mktemp("large")
    tile = noise((500, 500))
    pixels = np.tile(tile, (SIDE // 500, SIDE // 500))
    tifffile.imwrite(folder / "raw.tif", pixels, photometric="minisblack")
    for name, options in (
        ("tiles.tif", {"tile": (256, 256)}),
        ("strips.tif", {"rowsperstrip": 64}),
    ):
        options |= {"compression": "lzw", "photometric": "minisblack"}
        tifffile.imwrite(folder / name, pixels // 128, **options)
    write_ome_zarr(folder / "image.zarr", pixels // 128, "yx", chunks=(512, 512))
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", ("raw.tif", "tiles.tif", "strips.tif", "image.zarr"))
def test_bands_of_a_large_file_need_little_memory(large_files, name, monkeypatch):
    monkeypatch.setattr(regions, "_CACHE_BYTES", 1 << 20)
    expected = np.tile(noise((500, 500)), (1, SIDE // 500))
    expected = expected if name == "raw.tif" else expected // 128
    tracemalloc.start()
    try:
        with open_planes(large_files[name]) as (plane,):
            for top in range(0, SIDE, 500):
                band = plane.read(slice(top, top + 500))
                assert np.array_equal(band[..., 0], expected)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 28e6  # A band of 4 MB and two rows of blocks of up to 8 MB each.


PROGRAM = """
import resource, sys
from nucseg_jax.data.planes import open_planes
with open_planes(sys.argv[1]) as (plane,):
    for top in range(0, plane.shape[0], 1000):
        plane.read(slice(top, top + 1000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("compression", (None, "zlib"))
def test_400_megapixels_need_a_quarter_of_a_gigabyte(tmp_path, compression):
    path = tmp_path / "a.tif"
    tile = noise((512, 512))
    tifffile.imwrite(
        path,
        (tile for _ in range(1600)),
        shape=(20_000, 20_000),
        dtype=np.uint8,
        tile=(512, 512),
        compression=compression,
        photometric="minisblack",
    )
    command = [sys.executable, "-c", PROGRAM, str(path)]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    assert int(output) / 1024 < 256


# Limits.


def test_limit_holds_for_what_is_decoded_at_once(tmp_path):
    shape = (70, 50)
    for data, limit in (
        (encode(GRAY, "PNG"), 3500),
        (encode_tiff(GRAY, compression="zlib", rowsperstrip=70), 3500),
        (encode_tiff(GRAY, compression="zlib", rowsperstrip=7), 350),
        (encode_tiff(GRAY, compression="zlib", tile=(16, 32)), 512),
        (encode_tiff(GRAY), 1),
    ):
        path = write(tmp_path / "a.tif", data)
        with open_planes(path, max_pixels=limit) as (plane,):
            assert plane.read().shape == (*shape, 1)
        if limit > 1:
            message = f"{limit:,} pixels are more than the limit of {limit - 1:,}"
            with pytest.raises(ImageError, match=message):
                with open_planes(path, max_pixels=limit - 1):
                    pass


def test_limit_counts_many_channels_as_many_pixels(tmp_path):
    options = {"planarconfig": "contig", "compression": "zlib", "rowsperstrip": 70}
    path = tiff(tmp_path, noise((70, 50, 9)), **options)
    with pytest.raises(ImageError, match="10,500 pixels are more"):
        with open_planes(path, channel="0", max_pixels=3500):
            pass


def test_limit_of_chunks(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", GRAY, "yx", chunks=(32, 32))
    with pytest.raises(ImageError, match="1,024 pixels are more"):
        with open_planes(path, max_pixels=1023):
            pass


def test_the_limit_is_ours_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("PNG", "JPEG", "BMP"):
        path = write(tmp_path / "a.img", encode(GRAY, kind))
        with open_planes(path) as (plane,):
            assert plane.read().shape == (70, 50, 1)


# Stacks and axes.


def test_pictures_are_named_by_their_place(tmp_path):
    with open_planes(ome_tiff(tmp_path, STACK, axes="TZYX")) as planes:
        names = [(plane.name, plane.suffix) for plane in planes]
        assert names[0] == ("a.ome.tif t=0 z=0", "_t000_z000")
        assert names[5] == ("a.ome.tif t=1 z=2", "_t001_z002")
        assert len(set(names)) == 6
        for plane, pixels in zip(planes, STACK.reshape(6, 70, 50), strict=True):
            np.testing.assert_array_equal(plane.read()[..., 0], pixels)


def test_a_single_picture_has_the_name_of_the_file(tmp_path):
    with open_planes(str(tiff(tmp_path, DEEP))) as (plane,):
        assert (plane.name, plane.suffix) == ("a.tif", "")
        assert plane.channels == ("0",) and plane.segmented == (0,)


def test_images_of_a_file_are_told_apart(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for pixels in (STACK[0], STACK[1, :2, :9]):
            writer.write(pixels, metadata={"axes": "TYX"}, photometric="minisblack")
    with open_planes(path) as planes:
        names = [plane.name for plane in planes]
        assert names[2:4] == ["a.ome.tif s=0 t=2", "a.ome.tif s=1 t=0"]
        assert planes[4].suffix == "_s001_t001"
        np.testing.assert_array_equal(planes[4].read()[..., 0], STACK[1, 1, :9])


@pytest.mark.parametrize(
    ("answer", "num_planes", "num_channels"),
    (("TYX", 3, 1), ("ZYX", 3, 1), ("cyx", 1, 3)),
)
def test_the_user_says_what_pages_are(tmp_path, answer, num_planes, num_channels):
    path = tiff(tmp_path, STACK[0], metadata=None)
    channel = "2" if num_channels == 3 else None
    with open_planes(path, axes=answer, channel=channel) as planes:
        assert len(planes) == num_planes
        assert planes[0].shape == (70, 50, num_channels)
        assert planes[-1].suffix == ("" if channel else f"_{answer[0].lower()}002")
        seen = planes[-1].read()[..., planes[-1].segmented[0]]
        np.testing.assert_array_equal(seen, STACK[0, 2])


@pytest.mark.parametrize("compression", (None, "zlib"))
@pytest.mark.parametrize("axes", ("TCYX", "CTYX"))
def test_the_user_says_what_two_axes_are(tmp_path, axes, compression):
    path = tiff(tmp_path, STACK, compression=compression)
    with open_planes(path, axes=axes, channel="1") as planes:
        expected = STACK if axes == "TCYX" else STACK.swapaxes(0, 1)
        for plane, pixels in zip(planes, expected, strict=True):
            np.testing.assert_array_equal(plane.read(), np.moveaxis(pixels, 0, -1))


@pytest.mark.parametrize("compression", (None, "zlib"))
def test_channels_that_were_saved_last(tmp_path, compression):
    # As tifffile writes an array [H, W, 5]: 70 pages of 50 x 5 pixels.
    pixels = noise((70, 50, 5), np.uint16)
    path = tiff(tmp_path, pixels, compression=compression)
    with open_planes(path, axes="YXC", channel="4") as (plane,):
        assert plane.shape == pixels.shape and plane.segmented == (4,)
        assert plane.channels == ("0", "1", "2", "3", "4")
        np.testing.assert_array_equal(plane.read(), pixels)
        found = plane.read(slice(3, 9), slice(2, 4))
        np.testing.assert_array_equal(found, pixels[3:9, 2:4])
    with pytest.raises(ImageError, match="3,500 pixels are more"):
        with open_planes(path, axes="YXC", channel="4", max_pixels=3499):
            pass


def test_times_that_were_saved_last(tmp_path):
    pixels = noise((70, 50, 2), np.uint16)
    with open_planes(tiff(tmp_path, pixels), axes="YXT") as planes:
        assert [plane.suffix for plane in planes] == ["_t000", "_t001"]
        np.testing.assert_array_equal(planes[1].read(), pixels[..., 1:])


def test_samples_of_a_colour_may_be_called_channels(tmp_path):
    path = tiff(tmp_path, RGB, photometric="rgb")
    with open_planes(path, axes="YXC", channel="1") as (plane,):
        assert plane.segmented == (1,)
    with pytest.raises(ImageError, match="has the channels 0 = red"):
        with open_planes(path, axes="YXC"):
            pass


@pytest.mark.parametrize("count", (3, 4))
@pytest.mark.parametrize("compression", (None, "zlib"))
def test_few_pictures_that_were_saved_as_samples_of_a_colour(
    tmp_path, count, compression
):
    """As tifffile by itself writes them; with four, one is transparency then."""
    pixels = noise((count, 70, 50), np.uint16)
    options = {"photometric": "rgb", "planarconfig": "separate"}
    options["compression"] = compression
    for axis, suffix in {"T": "_t000", "Z": "_z000"}.items():
        path = tiff(tmp_path, pixels, metadata={"axes": f"{axis}YX"}, **options)
        with open_planes(path) as planes:
            assert len(planes) == count and planes[0].suffix == suffix
            for plane, picture in zip(planes, pixels, strict=True):
                assert plane.channels == ("0",)
                np.testing.assert_array_equal(plane.read()[..., 0], picture)
    path = tiff(tmp_path, pixels, metadata={"axes": "CYX"}, **options)
    with open_planes(path, channel="2") as (plane,):
        assert plane.segmented == (2,) and len(plane.channels) == count
        np.testing.assert_array_equal(plane.read(), np.moveaxis(pixels, 0, -1))
    path = tiff(tmp_path, pixels, metadata=None, **options)
    with open_planes(path) as (plane,):
        assert plane.channels == ("red", "green", "blue")
    with open_planes(path, axes="TYX") as planes:
        assert len(planes) == count
        np.testing.assert_array_equal(planes[-1].read()[..., 0], pixels[-1])


@pytest.mark.parametrize("axes", ("YX", "TZYX"))
def test_axes_do_not_concern_files_with_another_number(tmp_path, axes):
    with open_planes(tiff(tmp_path, RGB, photometric="rgb"), axes=axes) as (plane,):
        assert plane.segmented == (0, 1, 2)
    with pytest.raises(ImageError, match=r"axes IYX \(3, 70, 50\)"):
        with open_planes(tiff(tmp_path, STACK[0], metadata=None), axes=axes):
            pass


def test_axes_do_not_move_known_rows_and_columns(tmp_path):
    # Such as a colour picture among stacks: it has three axes, too.
    with open_planes(tiff(tmp_path, RGB, photometric="rgb"), axes="TYX") as (plane,):
        assert plane.shape == RGB.shape and plane.segmented == (0, 1, 2)


def test_axes_overrule_what_a_file_says_of_its_pages(tmp_path):
    path = tiff(tmp_path, STACK[0], imagej=True, metadata={"axes": "ZYX"})
    with open_planes(path, axes="CYX", channel="1") as (plane,):
        np.testing.assert_array_equal(plane.read(), np.moveaxis(STACK[0], 0, -1))


@pytest.mark.parametrize("axes", ("TTYX", "TY", "T-YX", "QYX", "", "ÄYX"))
def test_axes_that_are_none_are_refused(tmp_path, axes):
    path = tiff(tmp_path, STACK[0], metadata=None)
    with pytest.raises(ImageError, match=f"--axes={axes}: expected one letter"):
        with open_planes(path, axes=axes):
            pass


def test_axes_of_zarr_may_be_in_any_order(tmp_path):
    pixels = noise((70, 2, 50, 3), np.uint16)
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(32, 1, 16, 2))
    with open_planes(tmp_path / "a.zarr", axes="YTXC", channel="0") as planes:
        assert [plane.suffix for plane in planes] == ["_t000", "_t001"]
        np.testing.assert_array_equal(planes[1].read(), pixels[:, 1])


# Channels.


@pytest.mark.parametrize(
    ("channel", "segmented"),
    (
        ("2", (2,)),
        ("DAPI", (0,)),
        (" gfp ", (1,)),
        ("405", (2,)),
        ("x,y", (3,)),
        ("2,1,0", (2, 1, 0)),
        ("dapi, gfp, 3", (0, 1, 3)),
    ),
)
def test_channels_are_chosen_by_number_or_name(tmp_path, channel, segmented):
    pixels = noise((4, 70, 50))
    names = ("DAPI", "GFP", "405", "x,y")
    path = ome_tiff(tmp_path, pixels, axes="CYX", Channel={"Name": list(names)})
    with open_planes(path, channel=channel) as (plane,):
        assert plane.segmented == segmented
        assert plane.channels == names
        np.testing.assert_array_equal(plane.read(), np.moveaxis(pixels, 0, -1))


def test_channels_of_one_name_are_told_apart(tmp_path):
    names = ["Fluor", "fluor", "BF"]
    path = ome_tiff(tmp_path, noise((3, 70, 50)), axes="CYX", Channel={"Name": names})
    with open_planes(path, channel="2") as (plane,):
        assert plane.channels == ("0_Fluor", "1_fluor", "BF")
    with pytest.raises(ImageError, match="no --channel=Fluor, but 0 = 0_Fluor, 1 = 1"):
        with open_planes(path, channel="Fluor"):
            pass
    names = ["a", "a", "0_a"]
    path = ome_tiff(tmp_path, noise((3, 70, 50)), axes="CYX", Channel={"Name": names})
    with open_planes(path, channel="2") as (plane,):
        assert plane.channels == ("0_a", "1_a", "2_0_a")


@pytest.mark.parametrize("channel", ("4", "RFP", "0,1,9", "-1", "", "0,,1"))
def test_channels_that_are_not_there_are_refused(tmp_path, channel):
    names = ["DAPI", "GFP", "405", "x,y"]
    path = ome_tiff(tmp_path, noise((4, 70, 50)), axes="CYX", Channel={"Name": names})
    message = f"no --channel={channel}, but 0 = DAPI, 1 = GFP, 2 = 405, 3 = x,y"
    with pytest.raises(ImageError, match=message):
        with open_planes(path, channel=channel):
            pass


def test_two_channels_are_refused(tmp_path):
    with pytest.raises(ImageError, match="one channel, or three"):
        with open_planes(tiff(tmp_path, RGB, photometric="rgb"), channel="0,1"):
            pass


@pytest.mark.parametrize("channel", ["DAPI", "1", "0,1,2"])
def test_one_channel_without_a_name_is_never_another(tmp_path, channel):
    with open_planes(tiff(tmp_path, GRAY), channel=channel) as (plane,):
        assert plane.segmented == (0,)
    named = ome_tiff(tmp_path, GRAY, axes="YX", Channel={"Name": ["GFP"]})
    with pytest.raises(ImageError, match=f"no --channel={channel}, but 0 = GFP"):
        with open_planes(named, channel=channel):
            pass


def test_one_colour_may_be_chosen(tmp_path):
    path = write(tmp_path / "a.png", encode(RGB, "PNG"))
    with open_planes(path, channel="green") as (plane,):
        assert plane.segmented == (1,) and plane.shape == RGB.shape
        assert plane.channels == ("red", "green", "blue")


def test_colours_of_several_channels_are_channels(tmp_path):
    pixels = noise((2, 70, 50, 3))
    data = encode_tiff(pixels, ome=True, photometric="rgb", metadata={"axes": "CYXS"})
    path = write(tmp_path / "a.ome.tif", data)
    with open_planes(path, channel="3,4,5") as (plane,):
        assert plane.shape == (70, 50, 6)
        np.testing.assert_array_equal(plane.read()[..., 3:], pixels[1])


def test_the_folder_one_is_in_may_be_an_image(tmp_path, monkeypatch):
    pixels = noise((40, 30))
    monkeypatch.chdir(write_ome_zarr(tmp_path / "a.zarr", pixels, "yx"))
    with open_planes(".") as (plane,):
        np.testing.assert_array_equal(plane.read()[..., 0], pixels)


def test_a_palette_is_not_decoded_to_be_opened(tmp_path, monkeypatch):
    """A run that goes on opens all that is finished."""
    picture = PIL.Image.fromarray(noise((7, 5)) % 4).convert("P")
    picture.save(tmp_path / "a.png")

    def decode(image):
        raise AssertionError("decoded")

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", decode)
    with open_planes(tmp_path / "a.png") as (plane,):
        assert plane.shape == (7, 5, 3)


def test_a_long_list_of_channels_is_cut(tmp_path):
    path = tiff(tmp_path, noise((7, 5, 99)), planarconfig="contig")
    with pytest.raises(ImageError, match=r"18, 19, \.\.\.; say by number"):
        with open_planes(path):
            pass


# Pixel sizes.


def size_of(path: pathlib.Path) -> float | None:
    with open_planes(path) as (plane, *_):
        return plane.pixel_size


@pytest.mark.parametrize(
    ("metadata", "expected"),
    (
        ({"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}, 0.25),
        (
            {
                "PhysicalSizeX": 250,
                "PhysicalSizeXUnit": "nm",
                "PhysicalSizeY": 0.25,
                "PhysicalSizeYUnit": "µm",
            },
            0.25,
        ),
        ({"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.8}, 0.4),
        ({"PhysicalSizeX": 0.25}, 0.25),
        ({"PhysicalSizeX": 0, "PhysicalSizeY": 0}, None),
        # Metres, without the unit.
        ({"PhysicalSizeX": 2.2e-7, "PhysicalSizeY": 2.2e-7}, None),
        (
            {
                "PhysicalSizeX": 1,
                "PhysicalSizeXUnit": "pixel",
                "PhysicalSizeY": 1,
                "PhysicalSizeYUnit": "pixel",
            },
            None,
        ),
        ({}, None),
    ),
)
def test_pixel_size_of_ome_tiff(tmp_path, metadata, expected):
    assert size_of(ome_tiff(tmp_path, DEEP, axes="YX", **metadata)) == (
        None if expected is None else pytest.approx(expected)
    )


@pytest.mark.parametrize(
    ("unit", "resolution", "expected"),
    (
        ("um", (4, 4), 0.25),
        ("micron", (4, 4), 0.25),
        ("\\u00B5m", (2, 2), 0.5),
        ("nm", (0.004, 0.004), 0.25),
        ("mm", (4000, 4000), 0.25),
        ("inch", (101_600, 101_600), 0.25),
        ("inch", (300, 300), None),  # Of a print that ImageJ saved again.
        ("pixel", (4, 4), None),
        ("", (4, 4), None),
    ),
)
def test_pixel_size_of_imagej(tmp_path, unit, resolution, expected):
    options = {"resolution": resolution, "metadata": {"unit": unit}}
    path = tiff(tmp_path, DEEP, imagej=True, **options)
    assert size_of(path) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    (
        ((40_000, 40_000), "centimeter", 0.25),
        ((101_600, 101_600), "inch", 0.25),
        ((300, 300), "inch", None),  # Of a print.
        ((118, 118), "centimeter", None),
        ((4, 4), "none", None),
    ),
)
def test_pixel_size_of_plain_tiff(tmp_path, resolution, unit, expected):
    path = tiff(tmp_path, DEEP, resolution=resolution, resolutionunit=unit)
    assert size_of(path) == (None if expected is None else pytest.approx(expected))


def test_every_series_has_a_pixel_size_of_its_own(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for pixels, size in ((STACK[0, 0], 40_000), (STACK[0, 0, :30], 10_000)):
            unit = {"resolution": (size, size), "resolutionunit": "centimeter"}
            writer.write(pixels, metadata=None, **unit)
    with open_planes(path) as planes:
        assert [plane.pixel_size for plane in planes] == [0.25, 1.0]


def test_pixel_size_of_a_slide_scanner(tmp_path):
    description = "Aperio Image Library v11.2.1\r\n50x70 (16x16)|AppMag = 40|MPP = 0.25"
    options = {"photometric": "rgb", "metadata": None, "description": description}
    assert size_of(tiff(tmp_path, RGB, tile=(16, 16), **options)) == 0.25


@pytest.mark.parametrize("version", ("0.4", "0.5"))
@pytest.mark.parametrize(
    ("unit", "expected"), (("micrometer", 0.5), ("nanometer", 5e-4), (None, None))
)
def test_pixel_size_of_ome_zarr(tmp_path, version, unit, expected):
    options = {"scale": (9.0, 0.5, 0.5), "unit": unit, "version": version}
    path = write_ome_zarr(tmp_path / "a.zarr", STACK[0], "zyx", **options)
    assert size_of(path) == (None if expected is None else pytest.approx(expected))


def test_axes_of_ome_zarr_may_be_capital_letters(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", DEEP, "YX", scale=(0.5, 0.5))
    assert size_of(path) == pytest.approx(0.5)


def test_pixel_size_of_ome_zarr_with_a_scale_of_all_levels(tmp_path):
    path = write_ome_zarr(tmp_path / "a.zarr", DEEP, "yx", scale=(0.5, 0.5))
    group = zarr.open_group(path)
    multiscales = group.attrs["multiscales"]
    overall = [{"type": "scale", "scale": [3.0, 3.0]}]
    multiscales[0]["coordinateTransformations"] = overall
    group.attrs["multiscales"] = multiscales
    assert size_of(path) == pytest.approx(1.5)


# Names.


@pytest.mark.parametrize(
    ("name", "expected"),
    (
        ("a.png", True),
        ("a.JPG", True),
        ("a.ome.tif", True),
        ("a.zarr", True),
        ("a.ome.zarr", True),
        (".a.zarr", False),
        ("._x.png", False),
        ("a.csv", False),
        ("zarr", False),
    ),
)
def test_files_to_open_are_known_by_their_names(name, expected):
    assert can_open(pathlib.Path(name)) == expected


@pytest.mark.parametrize("shape", [(2, 130, 130), (7, 50, 60)])
@pytest.mark.parametrize("channel", [None, 1])
def test_arrays_whose_channels_come_first_are_refused(shape, channel):
    with pytest.raises(ImageError, match=r"np\.moveaxis\(image, 0, -1\)"):
        plane_of_array(np.zeros(shape, np.uint16), channel=channel)


@pytest.mark.parametrize("shape", [(130, 130, 2), (1, 1, 3), (2, 9, 4), (40, 50, 40)])
def test_narrow_arrays_are_not_mistaken_for_such(shape):
    plane = plane_of_array(np.zeros(shape, np.uint16), channel=1)
    assert plane.shape == shape and plane.segmented == (1,)
