"""A table of strange files: each is read right, or refused in one clear line.

A function of the table makes a file and says what should come of it: the pixels of
each picture, or what the message says.
"""

import contextlib
import io
import json
import os
import pathlib
import re
import struct
import tempfile
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr

from nucseg_jax.data import images
from nucseg_jax.data.planes import open_planes
from tests.data.files import (
    encode,
    encode_png16,
    encode_tiff,
    noise,
    ome_metadata,
    png_chunk,
    png_header,
    write_ome_parts,
    write_ome_zarr,
)

GRAY = noise((40, 30))
RGB = noise((40, 30, 3))
ALPHA = noise((40, 30, 1))
DEEP = noise((40, 30), np.uint16)
SMOOTH = (np.mgrid[:40, :30].sum(axis=0) * 3).astype(np.uint8)

Pictures = list[np.ndarray]  # Expected pixels, [H, W] or [H, W, C].
Make = Callable[[pathlib.Path], tuple[pathlib.Path, Pictures | str]]

READ: dict[str, Make] = {}
REFUSED: dict[str, Make] = {}


def read(make: Make) -> Make:
    READ[make.__name__] = make
    return make


def refused(make: Make) -> Make:
    REFUSED[make.__name__] = make
    return make


def write(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path


def with_tag(data: bytes, code: int, value: int, new_code: int | None = None) -> bytes:
    """Sets a tag of a TIFF's first page to a 32-bit number."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages[0].tags[code].offset
    entry = struct.pack("<HHII", new_code or code, 4, 1, value)
    return data[:offset] + entry + data[offset + len(entry) :]


def tiff(folder: pathlib.Path, pixels: np.ndarray, **options) -> pathlib.Path:
    return write(folder / "a.tif", encode_tiff(pixels, **options))


@pytest.mark.parametrize("name", READ)
def test_read_right(tmp_path, name):
    path, expected = READ[name](tmp_path)
    with open_planes(path) as planes:
        assert len(planes) == len(expected)
        for plane, pixels in zip(planes, expected, strict=True):
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
            assert plane.shape == pixels.shape
            assert plane.dtype == pixels.dtype
            found = plane.read()
            assert found.dtype == pixels.dtype
            np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_clear_line(tmp_path, name):
    path, message = REFUSED[name](tmp_path)
    with pytest.raises(images.ImageError, match=message) as caught:
        with open_planes(path) as planes:
            for plane in planes:
                plane.read()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_the_table_is_long():
    assert len(READ) + len(REFUSED) >= 40


# PNG, JPEG and BMP.


@read
def png_of_one_bit(folder):
    bits = noise((40, 30), bool)
    return write(folder / "a.png", encode(bits, "PNG")), [bits]


@read
def png_of_four_bits(folder):
    picture = PIL.Image.fromarray(GRAY // 16 * 17).convert("L")
    quantized = picture.quantize(16)
    quantized.save(folder / "a.png", bits=4)
    return folder / "a.png", [np.asarray(quantized.convert("RGB"))]


@read
def png_with_palette_and_transparency(folder):
    colours = noise((4, 3))
    picture = PIL.Image.fromarray(GRAY % 4).convert("P")
    picture.putpalette(colours.ravel().tolist())
    picture.putdata((GRAY % 4).ravel().tolist())
    picture.save(folder / "a.png", transparency=bytes([0, 9, 200, 255]))
    return folder / "a.png", [colours[GRAY % 4]]


@read
def png_of_gray_with_alpha(folder):
    pixels = np.concatenate([GRAY[..., None], ALPHA], axis=-1)
    return write(folder / "a.png", encode(pixels, "PNG")), [GRAY]


@read
def png_of_colour_with_alpha(folder):
    pixels = np.concatenate([RGB, ALPHA], axis=-1)
    return write(folder / "a.png", encode(pixels, "PNG")), [RGB]


@read
def png_of_gray_of_16_bits(folder):
    return write(folder / "a.png", encode_png16(DEEP)), [DEEP]


@read
def png_of_colour_with_alpha_of_16_bits(folder):
    pixels = noise((40, 30, 4), np.uint16)
    return write(folder / "a.png", encode_png16(pixels)), [pixels[..., :3]]


@read
def png_with_exif_behind_the_pixels(folder):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = encode(GRAY, "PNG")
    end = data.index(b"IEND") - 4
    chunk = png_chunk(b"eXIf", exif.tobytes()[6:])
    path = write(folder / "a.png", data[:end] + chunk + data[end:])
    return path, [np.rot90(GRAY, -1)]


@read
def bmp_with_palette(folder):
    picture = PIL.Image.fromarray(RGB).quantize(16)
    picture.save(folder / "a.bmp")
    return folder / "a.bmp", [np.asarray(picture.convert("RGB"))]


@read
def jpeg_that_is_progressive(folder):
    data = encode(SMOOTH, "JPEG", progressive=True, quality=90)
    return write(folder / "a.jpg", data), [imagecodecs.jpeg_decode(data)]


@read
def one_pixel(folder):
    return write(folder / "a.png", encode(GRAY[:1, :1], "PNG")), [GRAY[:1, :1]]


@read
def one_row(folder):
    return tiff(folder, DEEP[:1]), [DEEP[:1]]


@read
def one_column_of_compressed_tiles(folder):
    return tiff(folder, GRAY[:, :1], tile=(16, 16), compression="zlib"), [GRAY[:, :1]]


@read
def name_with_spaces_and_letters_of_other_scripts(folder):
    return write(folder / "Zellkern é 核 1.png", encode(GRAY, "PNG")), [GRAY]


@read
def tiff_called_png(folder):
    return write(folder / "a.png", encode_tiff(DEEP)), [DEEP]


@read
def png_called_tif(folder):
    return write(folder / "a.tif", encode(RGB, "PNG")), [RGB]


@read
def link_to_an_image(folder):
    write(folder / "a.png", encode(GRAY, "PNG"))
    (folder / "b.png").symlink_to("a.png")
    return folder / "b.png", [GRAY]


# TIFF: numbers.


@read
def tiff_of_one_bit_with_white_zero(folder):
    bits = noise((40, 30), bool)
    return tiff(folder, bits, photometric="miniswhite"), [~bits]


@read
def tiff_of_four_bits(folder):
    pixels = GRAY // 16
    path = tiff(folder, pixels, bitspersample=4, rowsperstrip=7)
    return path, [pixels * 17]


@read
def tiff_of_twelve_bits(folder):
    pixels = DEEP // 16
    path = tiff(folder, pixels, bitspersample=12, rowsperstrip=7)
    return path, [pixels]


@read
def tiff_of_twelve_bits_with_white_zero(folder):
    pixels = DEEP // 16
    path = tiff(folder, pixels, bitspersample=12, photometric="miniswhite")
    return path, [4095 - pixels]


@read
def tiff_of_signed_numbers(folder):
    pixels = noise((40, 30), np.int16)
    return tiff(folder, pixels), [pixels]


@read
def tiff_of_32_bits(folder):
    pixels = noise((40, 30), np.uint32)
    return tiff(folder, pixels), [pixels]


@read
def tiff_of_halves(folder):
    pixels = noise((40, 30), np.float16)
    return tiff(folder, pixels), [pixels]


@read
def tiff_of_doubles_with_predictor(folder):
    pixels = noise((40, 30), np.float64)
    return tiff(folder, pixels, compression="zlib", predictor=3), [pixels]


@read
def tiff_with_what_is_no_number(folder):
    pixels = noise((40, 30), np.float32)
    pixels[:5] = np.array([np.nan, np.inf, -np.inf, 1e30, -0.0])[:, None]
    return tiff(folder, pixels), [pixels]


@read
def tiff_of_one_value(folder):
    pixels = np.full((40, 30), 777, np.uint16)
    return tiff(folder, pixels), [pixels]


@read
def tiff_of_the_other_byte_order(folder):
    return tiff(folder, DEEP, byteorder=">"), [DEEP]


@read
def big_tiff(folder):
    return tiff(folder, DEEP, bigtiff=True), [DEEP]


@read
def tiff_with_bits_in_reverse(folder):
    data = bytearray(encode_tiff(GRAY, rowsperstrip=8))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        places = [
            slice(start, start + length)
            for start, length in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    for place in places:
        data[place] = imagecodecs.bitorder_decode(bytes(data[place]))
    # The tag of the software makes room for the order of bits.
    data = with_tag(bytes(data), 305, 2, new_code=266)
    return write(folder / "a.tif", data), [GRAY]


# TIFF: colours.


@read
def tiff_of_cmyk(folder):
    ink = noise((40, 30, 4))
    light = (255 - ink).astype(int)
    rgb = np.rint(light[..., :3] * light[..., 3:] / 255).astype(np.uint8)
    return tiff(folder, ink, photometric="separated"), [rgb]


@read
def tiff_with_palette(folder):
    colours = noise((3, 256), np.uint16)
    path = tiff(folder, GRAY, photometric="palette", colormap=colours)
    return path, [(colours >> 8).astype(np.uint8).T[GRAY]]


@read
def tiff_of_colour_planes(folder):
    planes = np.moveaxis(RGB, -1, 0)
    options = {"photometric": "rgb", "planarconfig": "separate"}
    return tiff(folder, planes, tile=(16, 16), compression="lzw", **options), [RGB]


@read
def tiff_of_colour_with_alpha(folder):
    pixels = np.concatenate([RGB, ALPHA], axis=-1)
    return tiff(folder, pixels, photometric="rgb", extrasamples="assocalpha"), [RGB]


@read
def tiff_of_gray_with_alpha(folder):
    pixels = np.concatenate([GRAY[..., None], ALPHA], axis=-1)
    options = {"planarconfig": "contig", "extrasamples": "unassalpha"}
    return tiff(folder, pixels, **options), [GRAY]


@read
def tiff_of_uncompressed_ycbcr(folder):
    ycbcr = np.asarray(PIL.Image.fromarray(RGB).convert("YCbCr"))
    rgb = np.asarray(PIL.Image.fromarray(ycbcr, "YCbCr").convert("RGB"))
    data = encode_tiff(ycbcr, photometric="rgb", extratags=[(530, 3, 2, (1, 1), True)])
    return write(folder / "a.tif", with_tag(data, 262, 6)), [rgb]


@read
def tiff_of_ycbcr_in_jpeg_2000(folder):
    ycbcr = np.asarray(PIL.Image.fromarray(RGB).convert("YCbCr"))
    rgb = np.asarray(PIL.Image.fromarray(ycbcr, "YCbCr").convert("RGB"))
    return tiff(folder, ycbcr, photometric="rgb", compression=33003), [rgb]


@read
def tiff_of_colours_of_five_bits(folder):
    pixels = RGB // 8
    path = tiff(folder, pixels, photometric="rgb", bitspersample=5)
    return path, [(pixels * (255 / 31)).astype(np.uint8)]


@refused
def tiff_of_cielab(folder):
    return tiff(folder, RGB, photometric="cielab"), "CIELAB.*save it as RGB"


@refused
def tiff_of_complex_numbers(folder):
    return tiff(folder, noise((4, 3), np.float32) + 1j), "complex"


@refused
def tiff_of_two_samples_that_are_not_explained(folder):
    path = tiff(folder, RGB[..., :2], planarconfig="contig")
    return path, "channels 0, 1; .*--channel=0"


@refused
def tiff_of_five_samples(folder):
    path = tiff(folder, noise((40, 30, 5)), planarconfig="contig")
    return path, "channels 0, 1, 2, 3, 4; .*--channel=0,1,2"


# TIFF: compressions and layouts.


@read
def tiff_of_jpeg_2000(folder):
    return tiff(folder, DEEP, compression="jpeg2000", tile=(16, 16)), [DEEP]


@read
def tiff_of_jpeg_xl_without_loss(folder):
    path = tiff(folder, GRAY, compression="jpegxl", compressionargs={"level": 101})
    return path, [tifffile.imread(path)]


@read
def tiff_of_jpeg(folder):
    path = tiff(folder, RGB, photometric="rgb", compression="jpeg", tile=(16, 16))
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.YCBCR
    return path, [tifffile.imread(path)]


@read
def tiff_of_zstd_with_predictor(folder):
    path = tiff(folder, DEEP, compression="zstd", predictor=2, rowsperstrip=7)
    return path, [DEEP]


@read
def tiff_with_tiles_left_out(folder):
    tiles = [None if n % 2 else np.full((16, 16), n + 1, np.uint8) for n in range(6)]
    path = folder / "a.tif"
    options = {"tile": (16, 16), "compression": "zlib", "photometric": "minisblack"}
    tifffile.imwrite(path, iter(tiles), shape=(40, 30), dtype=np.uint8, **options)
    expected = np.array([[1, 0], [3, 0], [5, 0]], np.uint8)
    return path, [expected.repeat(16, axis=0).repeat(16, axis=1)[:40, :30]]


@read
def pyramid_with_levels_below_the_page(folder):
    pixels = noise((64, 48), np.uint16)
    path = folder / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        options = {"tile": (16, 16), "compression": "lzw"}
        writer.write(pixels, subifds=2, metadata={"axes": "YX"}, **options)
        writer.write(pixels[::2, ::2], subfiletype=1, **options)
        writer.write(pixels[::4, ::4], subfiletype=1, **options)
    return path, [pixels]


@read
def pyramid_with_levels_as_pages(folder):
    path = folder / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 2, 4):
            writer.write(
                np.ascontiguousarray(RGB[::step, ::step]),
                photometric="rgb",
                metadata=None,
                subfiletype=int(step > 1),
                tile=(16, 16),
            )
    return path, [RGB]


@read
def thumbnail_beside_the_picture(folder):
    path = folder / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(DEEP, metadata=None)
        writer.write(RGB[:7, :5], photometric="rgb", metadata=None, subfiletype=1)
    return path, [DEEP]


@read
def pictures_of_unequal_size(folder):
    path = folder / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(DEEP, metadata=None)
        writer.write(RGB[:7, :5], photometric="rgb", metadata=None)
    return path, [DEEP, RGB[:7, :5]]


# Stacks.


@read
def imagej_hyperstack(folder):
    pixels = noise((2, 3, 40, 30), np.uint16)
    path = tiff(folder, pixels, imagej=True, metadata={"axes": "TZYX"})
    return path, list(pixels.reshape(6, 40, 30))


@read
def imagej_stack_with_one_header(folder):
    pixels = noise((4, 40, 30), np.uint16)
    path = folder / "a.tif"
    options = {"truncate": True, "metadata": {"axes": "TYX"}}
    tifffile.imwrite(path, pixels, imagej=True, **options)
    return path, list(pixels)


@read
def imagej_gray_with_lookup_table(folder):
    green = np.zeros((3, 256), np.uint16)
    green[1] = np.arange(256) * 257
    path = folder / "a.tif"
    tifffile.imwrite(path, GRAY, imagej=True, colormap=green)
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.PALETTE
    return path, [GRAY]


@read
def ome_stack_of_colours(folder):
    pixels = noise((3, 40, 30, 3))
    path = folder / "a.ome.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", metadata={"axes": "TYXS"})
    return path, list(pixels)


@read
def ome_of_five_axes_with_one_channel(folder):
    pixels = noise((2, 3, 1, 40, 30), np.uint16)
    path = folder / "a.ome.tif"
    tifffile.imwrite(path, pixels, metadata={"axes": "TZCYX"}, compression="zlib")
    return path, list(pixels.reshape(6, 40, 30))


@read
def ome_of_two_files(folder):
    pixels = noise((2, 40, 30), np.uint16)
    return write_ome_parts(folder, pixels)[0], list(pixels)


@read
def ome_of_two_files_by_the_one_that_names_the_other(folder):
    pixels = noise((2, 40, 30), np.uint16)
    return write_ome_parts(folder, pixels, has_master=True)[1], list(pixels)


@read
def ome_of_two_files_without_the_one_that_describes_it(folder):
    pixels = noise((2, 40, 30), np.uint16)
    master, path = write_ome_parts(folder, pixels, has_master=True)
    master.unlink()
    return path, [pixels[1]]


@read
def ome_part_whose_master_does_not_know_it(folder):
    pixels = noise((2, 40, 30), np.uint16)
    _, path = write_ome_parts(folder, pixels, has_master=True)
    return path.rename(folder / "b.ome.tif"), [pixels[1]]


@refused
def ome_of_two_files_of_which_one_is_missing(folder):
    path, _ = ome_of_two_files(folder)
    (folder / "a1.ome.tif").unlink()
    return path, "lacks 1 of 2 pages"


@refused
def ome_whose_metadata_break_off(folder):
    xml = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image></OME>'
    path = tiff(folder, GRAY, description=xml, metadata=None)
    return path, r"its OME metadata is broken \(mismatched tag.*save it again"


@refused
def ome_with_several_channels(folder):
    pixels = noise((2, 3, 4, 40, 30))
    path = folder / "a.ome.tif"
    metadata = {"axes": "TZCYX", "Channel": {"Name": ["DAPI", "GFP", "405", "x,y"]}}
    tifffile.imwrite(path, pixels, metadata=metadata)
    return path, "channels 0 = DAPI, 1 = GFP, 2 = 405, 3 = x,y; .*--channel=0"


@refused
def pages_without_any_word_on_them(folder):
    path = tiff(folder, noise((5, 40, 30)), metadata=None)
    return path, (
        r"axes IYX \(5, 40, 30\).*--axes=TYX or --axes=ZYX or --axes=CYX, or split"
    )


@refused
def array_saved_with_its_shape_alone(folder):
    path = tiff(folder, noise((2, 3, 40, 30)))
    return path, (
        r"axes QQYX \(2, 3, 40, 30\).*--axes=TZYX or --axes=ZTYX or --axes=CTYX"
    )


@read
def ome_stack_of_colour_planes(folder):
    pixels = noise((2, 3, 40, 30))
    path = folder / "a.ome.tif"
    options = {"photometric": "rgb", "planarconfig": "separate"}
    tifffile.imwrite(path, pixels, metadata={"axes": "TSYX"}, **options)
    return path, list(np.moveaxis(pixels, 1, -1))


@refused
def volume_in_one_page(folder):
    pixels = noise((16, 32, 32))
    path = tiff(folder, pixels, volumetric=True, tile=(16, 16, 16))
    return path, "volume in one page"


# OME-Zarr.


@read
def ome_zarr_of_version_04(folder):
    pixels = noise((2, 3, 40, 30), np.uint16)
    path = write_ome_zarr(folder / "a.zarr", pixels, "tzyx", chunks=(1, 1, 16, 16))
    return path, list(pixels.reshape(6, 40, 30))


@read
def ome_zarr_of_version_05(folder):
    pixels = noise((1, 1, 2, 40, 30), np.float32)
    path = write_ome_zarr(folder / "a.ome.zarr", pixels, "tczyx", version="0.5")
    return path, list(pixels[0, 0])


@read
def ome_zarr_of_several_images(folder):
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    write_ome_zarr(folder / "a.zarr" / "0", GRAY, "yx")
    write_ome_zarr(folder / "a.zarr" / "1", DEEP[:9], "yx")
    return folder / "a.zarr", [GRAY, DEEP[:9]]


@read
def zarr_array_of_one_picture(folder):
    zarr.create_array(folder / "a.zarr", data=DEEP)
    return folder / "a.zarr", [DEEP]


@refused
def zarr_array_of_unknown_axes(folder):
    zarr.create_array(folder / "a.zarr", data=noise((2, 40, 30)))
    return folder / "a.zarr", r"axes QYX \(2, 40, 30\).*--axes=TYX"


@refused
def ome_zarr_with_several_channels(folder):
    pixels = noise((2, 40, 30))
    path = write_ome_zarr(folder / "a.zarr", pixels, "cyx", labels=("DAPI", "GFP"))
    return path, "channels 0 = DAPI, 1 = GFP; .*--channel=0"


@refused
def ome_zarr_of_a_plate(folder):
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=2)
    group.attrs["plate"] = {"columns": [], "rows": [], "wells": []}
    return folder / "a.zarr", "plate of many images; name .* as .*/a.zarr/A/1/0"


@refused
def ome_zarr_of_a_well(folder):
    group = zarr.open_group(folder / "a.zarr/A/1", mode="w", zarr_format=2)
    group.attrs["well"] = {"images": [{"path": "0"}]}
    return folder / "a.zarr/A/1", "well of many images; name .* as .*/a.zarr/A/1/0"


@refused
def zarr_folder_without_an_image(folder):
    zarr.open_group(folder / "a.zarr", mode="w")
    return folder / "a.zarr", "no image in the OME-Zarr format"


@refused
def zarr_folder_without_metadata(folder):
    (folder / "a.zarr").mkdir()
    return folder / "a.zarr", "a folder without Zarr metadata"


@refused
def ome_zarr_without_its_full_size(folder):
    path = folder / "a.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.attrs.update(ome_metadata("yx", "0.4"))
    group.create_array("1", data=GRAY)
    return path, "cannot be read as an image"


@refused
def ome_zarr_without_chunks(folder):
    path = write_ome_zarr(folder / "a.zarr", GRAY, "yx", chunks=(16, 16))
    for chunk in (path / "0").glob("[0-9]*"):
        chunk.unlink()
    return path, "lacks all chunks"


@refused
def ome_zarr_whose_chunks_have_other_names_than_it_says(folder):
    path = write_ome_zarr(folder / "a.zarr", GRAY, "yx", chunks=(16, 16))
    metadata = path / "0" / ".zarray"
    settings = json.loads(metadata.read_text())
    assert settings["dimension_separator"] == "."
    metadata.write_text(json.dumps(settings | {"dimension_separator": "/"}))
    return path, "lacks all chunks, or they have other names .* such as 0/0"


@refused
def ome_zarr_with_a_chunk_cut_off(folder):
    path = write_ome_zarr(folder / "a.zarr", GRAY, "yx", chunks=(16, 16))
    chunk = path / "0" / "1.1"
    write(chunk, chunk.read_bytes()[:20])
    return path, "chunk 1.1 is damaged, it has 20 bytes"


# No images.


@refused
def nothing_there(folder):
    return folder / "a.png", "no such file$"


@refused
def no_bytes(folder):
    return write(folder / "a.tif", b""), r"empty \(0 bytes\)"


@refused
def text_called_png(folder):
    return write(folder / "a.png", b"id,area\n"), "no PNG, JPEG, BMP or TIFF, .*id,area"


@refused
def gif_called_png(folder):
    return write(folder / "a.png", encode(GRAY, "GIF")), "no PNG.*GIF8"


@refused
def notes_of_a_mac_beside_an_image(folder):
    data = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "
    return write(folder / "._x.png", data), "no PNG"


@refused
def folder_called_png(folder):
    (folder / "x.png").mkdir()
    return folder / "x.png", "no such file, but a folder without image file"


@refused
def links_in_a_circle(folder):
    (folder / "a.png").symlink_to("b.png")
    (folder / "b.png").symlink_to("a.png")
    return folder / "a.png", "symbolic links"


@refused
def pipe_called_png(folder):
    os.mkfifo(folder / "a.png")
    return folder / "a.png", "not a regular file"


@refused
def animation(folder):
    picture = PIL.Image.fromarray(GRAY)
    others = [PIL.Image.fromarray(255 - GRAY)]
    picture.save(folder / "a.png", save_all=True, append_images=others)
    return folder / "a.png", "is an animation; save its pictures"


# Damage, and headers that promise too much.


@refused
def png_of_3600_million_pixels(folder):
    data = png_header(60_000, 60_000) + png_chunk(b"IDAT", zlib.compress(bytes(99)))
    return write(folder / "a.png", data), "3,600,000,000 pixels are more than"


@refused
def tile_of_3600_million_pixels(folder):
    data = encode_tiff(np.zeros((32, 32), np.uint8), tile=(16, 16), compression="zlib")
    for code in (256, 257, 322, 323):  # Width and height of the image and of tiles.
        data = with_tag(data, code, 60_000)
    return write(folder / "a.tif", data), "3,600,000,000 pixels are more than"


@refused
def tiff_without_a_page(folder):
    return write(folder / "a.tif", b"II*\0\0\0\0\0"), "damaged, it holds no page"


@refused
def picture_without_height(folder):
    data = with_tag(encode_tiff(GRAY), 257, 0)
    return write(folder / "a.tif", data), "no pixels|cannot be read"


@refused
def jpeg_cut_off(folder):
    return write(folder / "a.jpg", encode(GRAY, "JPEG")[:-400]), "truncated"


@refused
def png_of_16_bits_cut_off(folder):
    return write(folder / "a.png", encode_png16(DEEP)[:-400]), "cannot be read"


@refused
def stack_cut_off(folder):
    data = encode_tiff(noise((4, 40, 30)), imagej=True, metadata={"axes": "TYX"})
    return write(folder / "a.tif", data[:-1300]), "damaged, its pages break off after 1"


@refused
def stack_with_one_header_cut_off(folder):
    path, _ = imagej_stack_with_one_header(folder)
    return write(path, path.read_bytes()[:-1300]), "damaged, it is too short"


@refused
def stack_saved_with_its_shape_cut_off(folder):
    pixels = noise((4, 40, 30))
    data = encode_tiff(pixels, truncate=True, metadata={"axes": "TYX"})
    return write(folder / "a.tif", data[:-1300]), "damaged, it ends at byte"


@refused
def tiff_whose_jpeg_ends_early(folder):
    data = encode_tiff(SMOOTH, compression="jpeg")
    end = data.rindex(b"\xff\xd9")
    data = data[: end - 60] + bytes(62) + data[end + 2 :]
    assert imagecodecs.jpeg_decode(data[data.index(b"\xff\xd8") :]).any()
    return write(folder / "a.tif", data), "compressed pixels that end too early"


@refused
def tiff_whose_jpeg_2000_ends_early(folder):
    data = encode_tiff(SMOOTH, compression="jpeg2000")
    end = data.rindex(b"\xff\xd9")
    data = data[: end - 60] + bytes(62) + data[end + 2 :]
    return write(folder / "a.tif", data), "compressed pixels that end too early"


@refused
def tiff_with_a_strip_of_no_bytes(folder):
    data = encode_tiff(GRAY, compression="zlib", rowsperstrip=40)
    return write(folder / "a.tif", with_tag(data, 279, 0)), "holds no pixels"


# Another program's writing and reading.


@pytest.mark.parametrize(
    ("mode", "compression"),
    (
        ("1", "group3"),
        ("1", "group4"),
        ("L", "jpeg"),
        ("LA", "tiff_lzw"),
        ("P", "packbits"),
        ("RGB", "jpeg"),
        ("RGBA", "tiff_adobe_deflate"),
        ("CMYK", "jpeg"),
        ("CMYK", "tiff_lzw"),
        ("I;16", "tiff_deflate"),
        ("F", "lzma"),
    ),
)
def test_what_libtiff_writes_is_read_as_libtiff_reads_it(tmp_path, mode, compression):
    if mode in ("I;16", "F"):
        dtype = np.uint16 if mode == "I;16" else np.float32
        picture = PIL.Image.fromarray(noise((40, 30), dtype))
    else:
        picture = PIL.Image.fromarray(RGB).convert(mode)
    path = tmp_path / "a.tif"
    picture.save(path, compression=compression)
    with PIL.Image.open(path) as picture:
        picture = picture.convert("RGB") if mode in ("P", "CMYK") else picture
        expected = np.asarray(picture).reshape(40, 30, -1)
    with open_planes(path) as (plane,):
        found = plane.read()
    assert found.shape[-1] == (3 if mode in ("RGB", "RGBA", "P", "CMYK") else 1)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected[..., : found.shape[-1]])


# Rotation.


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ("png", "jpg", "tif", "planar.tif"))
def test_orientation_is_obeyed_in_every_region(tmp_path, kind, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    if kind.endswith("tif"):
        options = {"extratags": [(274, 3, 1, orientation, True)]}
        pixels = RGB if kind == "tif" else np.moveaxis(RGB, -1, 0)
        config = "contig" if kind == "tif" else "separate"
        options |= {"photometric": "rgb", "planarconfig": config, "rowsperstrip": 7}
        write(path, encode_tiff(pixels, compression="lzw", **options))
        stored = RGB
    else:
        write(path, encode(RGB, {"png": "PNG", "jpg": "JPEG"}[kind], exif=exif))
        stored = RGB if kind == "png" else imagecodecs.jpeg_decode(path.read_bytes())
    turn = {
        1: lambda p: p,
        2: np.fliplr,
        3: lambda p: np.rot90(p, 2),
        4: np.flipud,
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
        8: np.rot90,
    }[orientation]
    expected = turn(stored)
    with open_planes(path) as (plane,):
        assert plane.shape == expected.shape
        np.testing.assert_array_equal(plane.read(), expected)
        found = plane.read(slice(3, 11), slice(5, 6))
        np.testing.assert_array_equal(found, expected[3:11, 5:6])


# Permission.


@contextlib.contextmanager
def as_nobody():
    """Root may read everything, so the test goes on as somebody else."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize("closed", ("a.png", "."))
def test_files_that_may_not_be_read_are_named(closed):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        path = write(folder / "a.png", encode(GRAY, "PNG"))
        (folder / closed).chmod(0)
        message = f"{re.escape(str(path))}.*denied"
        with as_nobody(), pytest.raises(images.ImageError, match=message):
            images.read_image(path)
        folder.chmod(0o755)
