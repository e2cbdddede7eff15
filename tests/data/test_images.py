import io
import re
import struct
import zlib

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from nucseg_jax.data import images

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (7, 5), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
ALPHA = RNG.integers(1, 255, (7, 5, 1), dtype=np.uint8)
BITS = RNG.integers(0, 2, (7, 5)).astype(bool)
LOSSLESS = (".png", ".bmp", ".tif", ".TIFF")
READERS = (images.read_image, images.read_mask, images.read_label_image)


def save(path, pixels, **options):
    if path.suffix.lower() in (".tif", ".tiff"):
        options.setdefault("photometric", "rgb" if pixels.ndim == 3 else "minisblack")
        tifffile.imwrite(path, pixels, **options)
    elif pixels.dtype == np.uint16:
        path.write_bytes(imagecodecs.png_encode(pixels))
    else:
        PIL.Image.fromarray(pixels).save(path, **options)
    return path


def assert_image(path, expected, atol=0.0):
    image = images.read_image(path)
    assert image.dtype == np.float32
    assert image.flags.c_contiguous
    if expected.ndim == 2:
        expected = np.stack([expected] * 3, axis=-1)
    assert image.shape == expected.shape
    np.testing.assert_allclose(image, expected, rtol=0, atol=atol + 1e-7)


def stretch(pixels):
    """The 0.1th to the 99.9th percentile of all values, brought to [0, 1]."""
    ordered = np.sort(pixels.astype(np.float64), axis=None)
    places = np.array([0.001, 0.999]) * (ordered.size - 1)
    low, high = np.interp(places, np.arange(ordered.size), ordered)
    return ((pixels - low) / (high - low)).clip(0, 1)


def png_chunk(kind, data):
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png_header(width, height):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header


def encode(pixels, kind, **options):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


# Kinds of images.


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_gray_of_8_bits(tmp_path, suffix):
    assert_image(save(tmp_path / f"a{suffix}", GRAY), GRAY / 255)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_rgb_of_8_bits(tmp_path, suffix):
    assert_image(save(tmp_path / f"a{suffix}", RGB), RGB / 255)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_one_bit(tmp_path, suffix):
    assert_image(save(tmp_path / f"a{suffix}", BITS), BITS.astype(float))


@pytest.mark.parametrize("suffix", (".png", ".tif"))
def test_transparency_of_colour_is_dropped(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", np.concatenate([RGB, ALPHA], axis=-1))
    assert_image(path, RGB / 255)


def test_transparency_of_gray_is_dropped(tmp_path):
    path = save(tmp_path / "a.png", np.concatenate([GRAY[..., None], ALPHA], axis=-1))
    assert_image(path, GRAY / 255)


@pytest.mark.parametrize(
    "options", ({}, {"transparency": 2}, {"transparency": bytes([0, 9, 255])})
)
def test_palette(tmp_path, options):
    indices = (GRAY % 4).astype(np.uint8)
    colours = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(indices, "L").convert("P")
    picture.putpalette(colours.ravel().tolist())
    picture.putdata(indices.ravel().tolist())
    picture.save(tmp_path / "a.png", **options)
    assert_image(tmp_path / "a.png", colours[indices] / 255)


@pytest.mark.parametrize("suffix", (".jpg", ".jpeg"))
@pytest.mark.parametrize("mode", ("L", "RGB", "CMYK"))
def test_jpeg(tmp_path, suffix, mode):
    rows, columns = np.mgrid[:32, :24]
    smooth = np.stack([rows * 4, columns * 6, 200 - rows * 4], axis=-1).astype(np.uint8)
    smooth = smooth[..., :1].repeat(3, -1) if mode == "L" else smooth
    picture = PIL.Image.fromarray(smooth).convert(mode)
    picture.save(tmp_path / f"a{suffix}", quality=100, subsampling=0)
    assert_image(tmp_path / f"a{suffix}", smooth / 255, atol=0.02)


@pytest.mark.parametrize("suffix", (".png", ".tif"))
@pytest.mark.parametrize("channels", (1, 2, 3, 4))
def test_16_bits_keep_their_precision(tmp_path, suffix, channels):
    shades = np.arange(60 * 50 * channels) * 4 + 1000
    pixels = shades.reshape(60, 50, channels).astype(np.uint16)
    options = {}
    if suffix == ".tif":
        options = {"planarconfig": "contig"}
        options["photometric"] = "rgb" if channels > 2 else "minisblack"
        options["extrasamples"] = ("unassalpha",) if channels in (2, 4) else ()
    saved = pixels[..., 0] if channels == 1 else pixels
    path = save(tmp_path / f"a{suffix}", saved, **options)
    colours = pixels[..., : 3 if channels > 2 else 1]
    expected = np.broadcast_to(stretch(colours), (60, 50, 3))
    assert_image(path, expected, atol=1e-6)
    num_shades = len(np.unique(images.read_image(path)))
    assert num_shades > 0.99 * colours.size > 256


@pytest.mark.parametrize("channels", (2, 4))
def test_channels_that_are_not_explained_are_refused(tmp_path, channels):
    options = {"planarconfig": "contig", "photometric": "minisblack"}
    path = save(tmp_path / "a.tif", np.zeros((60, 50, channels), np.uint8), **options)
    with pytest.raises(images.ImageError, match=f"{channels} channels and does not"):
        images.read_image(path)


def test_few_outliers_do_not_darken_16_bits(tmp_path):
    pixels = np.full((100, 100), 1000, np.uint16)
    pixels[50:] = 1100
    pixels[0, :5] = 65535
    image = images.read_image(save(tmp_path / "a.tif", pixels))
    assert image[10, 10, 0] == 0 and image[90, 90, 0] == image[0, 0, 0] == 1


@pytest.mark.parametrize("dtype", (np.int16, np.int32, np.uint32))
def test_wide_integers_are_stretched(tmp_path, dtype):
    pixels = np.arange(2000).reshape(40, 50).astype(dtype)
    assert_image(save(tmp_path / "a.tif", pixels), stretch(pixels), atol=1e-6)


@pytest.mark.parametrize("dtype", (np.float16, np.float32, np.float64))
def test_floats_within_0_and_1_stay(tmp_path, dtype):
    pixels = RNG.uniform(0.2, 0.4, (7, 5)).astype(dtype)
    assert_image(save(tmp_path / "a.tif", pixels), pixels)


@pytest.mark.parametrize(("low", "high"), ((0, 1.01), (-0.01, 1), (100, 4000)))
def test_floats_beyond_0_and_1_are_stretched(tmp_path, low, high):
    pixels = np.linspace(low, high, 2000, dtype=np.float32).reshape(40, 50)
    assert_image(save(tmp_path / "a.tif", pixels), stretch(pixels), atol=1e-6)


def test_values_that_are_not_finite_become_the_ends(tmp_path):
    pixels = np.array([[np.nan, np.inf, -np.inf], [-0.2, 0.0, 0.2]], np.float32)
    image = images.read_image(save(tmp_path / "a.tif", pixels))[..., 0]
    np.testing.assert_allclose(image, [[0, 1, 0], [0, 0.5, 1]], atol=1e-6)


def test_nothing_finite_is_black(tmp_path):
    path = save(tmp_path / "a.tif", np.full((3, 2), np.nan, np.float32))
    assert_image(path, np.zeros((3, 2)))


def test_one_shade_of_16_bits_is_black(tmp_path):
    path = save(tmp_path / "a.png", np.full((3, 2), 1234, np.uint16))
    assert_image(path, np.zeros((3, 2)))


# Kinds of TIFF.


@pytest.mark.parametrize("dtype", (bool, np.uint8))
def test_tiff_whose_zero_is_white(tmp_path, dtype):
    pixels = BITS if dtype is bool else GRAY
    path = save(tmp_path / "a.tif", pixels, photometric="miniswhite")
    assert_image(path, 1 - pixels / (1 if dtype is bool else 255))


def test_tiff_of_16_bits_whose_zero_is_white(tmp_path):
    pixels = np.arange(2000, dtype=np.uint16).reshape(40, 50)
    path = save(tmp_path / "a.tif", pixels, photometric="miniswhite")
    assert_image(path, 1 - stretch(pixels), atol=1e-6)


@pytest.mark.parametrize("shape", ((7, 5), (1, 5), (7, 1), (1, 1), (3, 4)))
@pytest.mark.parametrize("channels", (3, 4))
def test_tiff_of_separate_colour_planes(tmp_path, shape, channels):
    planes = RNG.integers(0, 256, (channels, *shape), dtype=np.uint8)
    path = save(tmp_path / "a.tif", planes, planarconfig="separate")
    assert_image(path, np.moveaxis(planes[:3], 0, -1) / 255)


@pytest.mark.parametrize("shape", ((1, 1), (1, 5), (7, 1), (3, 5), (7, 3), (1, 5, 3)))
def test_thin_tiff_keeps_its_shape(tmp_path, shape):
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    assert_image(save(tmp_path / "a.tif", pixels), pixels / 255)


def test_one_value_far_beyond_the_others_takes_no_contrast(tmp_path):
    pixels = RNG.random((64, 64))
    pixels[3, 4] = 1e300
    image = images.read_image(save(tmp_path / "a.tif", pixels))[..., 0]
    low, high = np.percentile(pixels, (0.1, 99.9))
    expected = np.clip((pixels - low) / (high - low), 0, 1)
    np.testing.assert_allclose(image, expected, atol=0.01)


def test_tiff_with_a_palette(tmp_path):
    colormap = RNG.integers(0, 256, (3, 256), dtype=np.uint16) * 257
    path = save(tmp_path / "a.tif", GRAY, photometric="palette", colormap=colormap)
    assert_image(path, colormap.T[GRAY] / 65535)


def save_palette(path, indices, colours):
    """Writes uint8 [H, W] with a palette uint8 [n, 3]."""
    if path.suffix == ".tif":
        table = np.zeros((3, 256), np.uint16)
        table[:, : len(colours)] = colours.T.astype(np.uint16) * 257
        return save(path, indices, photometric="palette", colormap=table)
    picture = PIL.Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    picture.putpalette(colours.ravel().tolist())
    picture.save(path)
    return path


@pytest.mark.parametrize("suffix", (".png", ".bmp", ".tif"))
@pytest.mark.parametrize("count", (2, 5, 256))
def test_a_palette_of_truth_is_not_looked_up(tmp_path, suffix, count):
    indices = (GRAY.astype(int) * 7 % count).astype(np.uint8)
    colours = RNG.integers(1, 256, (count, 3), dtype=np.uint8)
    colours[0] = 0
    colours[-1] = 0  # A nucleus may be shown as background is.
    path = save_palette(tmp_path / f"a{suffix}", indices, colours)
    np.testing.assert_array_equal(images.read_label_image(path), indices)
    np.testing.assert_array_equal(images.read_mask(path), indices > 0)
    assert_image(path, colours[indices] / 255)


@pytest.mark.parametrize("suffix", (".png", ".bmp", ".tif"))
@pytest.mark.parametrize("read", (images.read_mask, images.read_label_image))
def test_a_palette_that_shows_background_in_colour_is_refused(tmp_path, suffix, read):
    """ImageJ saves masks so whose table is inverted: 255 is nucleus, and black."""
    colours = np.repeat(255 - np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    path = save_palette(tmp_path / f"a{suffix}", np.uint8(BITS) * 255, colours)
    message = r"shows the value 0, .* as the colour \(255, 255, 255\); save it in gray"
    with pytest.raises(images.ImageError, match=message):
        read(path)


@pytest.mark.parametrize("compression", ("lzw", "zlib", "packbits", "zstd"))
@pytest.mark.parametrize("layout", ({"tile": (16, 16)}, {"rowsperstrip": 5}))
def test_tiff_compressions(tmp_path, compression, layout):
    pixels = RNG.integers(0, 256, (40, 37, 3), dtype=np.uint8)
    path = save(tmp_path / "a.tif", pixels, compression=compression, **layout)
    assert_image(path, pixels / 255)


def test_ome_tiff_of_one_plane(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, GRAY[None, None, None], metadata={"axes": "TCZYX"})
    assert_image(path, GRAY / 255)


def test_tiff_of_cmyk_becomes_rgb(tmp_path):
    pixels = RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8)
    path = save(tmp_path / "a.tif", pixels, photometric="separated")
    ink = pixels / 255
    assert_image(path, (1 - ink[..., :3]) * (1 - ink[..., 3:]), atol=0.5 / 255)


# Arrays.

DTYPES = (bool, np.uint8, np.int8, np.uint16, np.int32, np.uint64, np.float32)


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([(1, 1), (4, 3), (4, 3, 1), (4, 3, 2), (2, 3, 4)]),
    scale=st.sampled_from([0.5, 1.0, 200.0, 1e9]),
    seed=st.integers(0, 999),
)
def test_any_array_becomes_rgb_in_the_unit_range(dtype, shape, scale, seed):
    values = np.random.default_rng(seed).uniform(0, scale, shape)
    if dtype is not bool and np.issubdtype(dtype, np.integer):
        values = values.clip(0, np.iinfo(dtype).max)
    image = images.to_rgb(values.astype(dtype))
    assert image.dtype == np.float32 and image.shape == (*shape[:2], 3)
    assert image.min() >= 0 and image.max() <= 1


def test_boolean_array_is_black_and_white():
    np.testing.assert_array_equal(images.to_rgb(BITS)[..., 1], BITS.astype(np.float32))


@pytest.mark.parametrize("shape", ((5,), (3, 4, 5), (0, 4, 1), (4, 0, 3), (2, 3, 4, 3)))
def test_other_shapes_are_refused(shape):
    with pytest.raises(images.ImageError, match=re.escape(f"thing: is {shape}")):
        images.to_rgb(np.zeros(shape), name="thing")


# Rotation by EXIF.


def exif_of(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


def turn_with_pillow(pixels, orientation):
    """What Pillow makes of uint8 [H, W], as the expectation."""
    with PIL.Image.open(io.BytesIO(encode(pixels, "PNG"))) as picture:
        picture.getexif()[0x0112] = orientation
        return np.asarray(PIL.ImageOps.exif_transpose(picture))


def save_turned(path, pixels, orientation):
    exif = exif_of(orientation)
    if pixels.dtype == np.uint16:
        data = imagecodecs.png_encode(pixels)
        header = len(png_header(1, 1))
        chunk = png_chunk(b"eXIf", exif.tobytes()[6:])
        path.write_bytes(data[:header] + chunk + data[header:])
    else:
        PIL.Image.fromarray(pixels).save(path, exif=exif, quality=100)
    return path


PLACES = np.arange(24, dtype=np.uint8).reshape(4, 6)
ORIENTATIONS = range(1, 9)


def test_the_eight_orientations_differ():
    turned = {turn_with_pillow(PLACES, n).tobytes() for n in ORIENTATIONS}
    assert len(turned) == 8
    assert turn_with_pillow(PLACES, 6).shape == (6, 4)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("dtype", (np.uint8, np.uint16))
def test_exif_turns_image_mask_and_labels_alike(tmp_path, orientation, dtype):
    scale = 9 if dtype == np.uint8 else 2000
    table = (np.arange(24) * scale).astype(dtype)
    path = save_turned(tmp_path / "a.png", table[PLACES], orientation)
    expected = table[turn_with_pillow(PLACES, orientation)]
    np.testing.assert_array_equal(images.read_label_image(path), expected)
    np.testing.assert_array_equal(images.read_mask(path), expected > 0)
    unit = expected / 255 if dtype == np.uint8 else stretch(expected)
    assert_image(path, unit, atol=1e-6)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_turns_colour_of_16_bits(tmp_path, orientation):
    table = RNG.integers(0, 65536, (24, 3), dtype=np.uint16)
    path = save_turned(tmp_path / "a.png", table[PLACES], orientation)
    expected = stretch(table[turn_with_pillow(PLACES, orientation)])
    assert_image(path, expected, atol=1e-6)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_turns_a_palette(tmp_path, orientation):
    colours = RNG.integers(0, 256, (24, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(PLACES, "L").convert("P")
    picture.putpalette(colours.ravel().tolist())
    picture.putdata(PLACES.ravel().tolist())
    picture.save(tmp_path / "a.png", exif=exif_of(orientation))
    expected = colours[turn_with_pillow(PLACES, orientation)] / 255
    assert_image(tmp_path / "a.png", expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_turns_jpeg(tmp_path, orientation):
    blocks = (PLACES * 10).repeat(16, axis=0).repeat(16, axis=1)
    path = save_turned(tmp_path / "a.jpg", blocks, orientation)
    assert_image(path, turn_with_pillow(blocks, orientation) / 255, atol=0.03)


@pytest.mark.parametrize("dtype", (np.uint8, np.uint16))
@pytest.mark.parametrize("orientation", (0, 9))
def test_unknown_orientation_is_ignored(tmp_path, dtype, orientation):
    path = save_turned(tmp_path / "a.png", PLACES.astype(dtype), orientation)
    np.testing.assert_array_equal(images.read_label_image(path), PLACES)


# Damage.


def truncated(data):
    return data[: len(data) * 6 // 10]


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


NOISE = np.random.default_rng(1).integers(0, 256, (60, 50), dtype=np.uint8)
NOISE_16 = NOISE.astype(np.uint16) * 256 + 3


def tiff_bytes(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric="minisblack", **options)
    return buffer.getvalue()


def two_series_tiff():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(NOISE)
        writer.write(NOISE[:9])
    return buffer.getvalue()


DAMAGED = {
    "truncated.png": truncated(encode(NOISE, "PNG")),
    "truncated_16.png": truncated(imagecodecs.png_encode(NOISE_16)),
    "truncated_rgb_16.png": truncated(
        imagecodecs.png_encode(NOISE_16[..., None].repeat(3, -1))
    ),
    "flipped.png": flipped(encode(NOISE, "PNG")),
    "flipped_16.png": flipped(imagecodecs.png_encode(NOISE_16)),
    "header_only.png": png_header(6, 4),
    "truncated.jpg": truncated(encode(NOISE, "JPEG")),
    "lacking_one_byte.jpg": encode(NOISE, "JPEG")[:-1],
    "truncated.bmp": truncated(encode(NOISE, "BMP")),
    "truncated.tif": truncated(tiff_bytes(NOISE)),
    "truncated_zlib.tif": truncated(tiff_bytes(NOISE, compression="zlib")),
    "truncated_lzw.tif": truncated(
        tiff_bytes(NOISE, compression="lzw", rowsperstrip=8)
    ),
    "truncated_tiles.tif": truncated(tiff_bytes(NOISE, tile=(16, 16))),
    "empty.png": b"",
    "empty.tif": b"",
    "text.png": b"these are no pixels",
    "text.tif": b"these are no pixels",
    "bomb.png": png_header(20000, 20000) + png_chunk(b"IDAT", zlib.compress(b"")),
    "pages.tif": tiff_bytes(NOISE.reshape(3, 20, 50)),
    "channels.ome.tif": tiff_bytes(
        NOISE.reshape(2, 30, 50), ome=True, metadata={"axes": "CYX"}
    ),
    "stack.tif": tiff_bytes(
        NOISE.reshape(3, 20, 50), imagej=True, metadata={"axes": "ZYX"}
    ),
    "series.tif": two_series_tiff(),
    "gif_named.png": encode(NOISE, "GIF"),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", DAMAGED)
def test_damage_names_the_file(tmp_path, read, name):
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    with pytest.raises(images.ImageError, match=re.escape(str(path))):
        read(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ("none.png", "none.tif", "folder.png", "folder.tif"))
def test_no_file_is_named(tmp_path, read, name):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.tif").mkdir()
    message = f"{re.escape(str(tmp_path / name))}: no such file"
    with pytest.raises(images.ImageError, match=message):
        read(tmp_path / name)


def test_cause_stands_in_the_message(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.tif").write_bytes(DAMAGED["pages.tif"])
    with pytest.raises(images.ImageError, match="0 bytes"):
        images.read_image(tmp_path / "a.png")
    with pytest.raises(images.ImageError, match=r"\(3, 20, 50\).*split the stack"):
        images.read_image(tmp_path / "b.tif")
    (tmp_path / "c.tif").write_bytes(DAMAGED["channels.ome.tif"])
    with pytest.raises(images.ImageError, match=r"CYX \(2, 30, 50\).*split the stack"):
        images.read_image(tmp_path / "c.tif")


@pytest.mark.parametrize("read", READERS)
def test_size_is_checked_before_decoding(tmp_path, read):
    # There are no pixels behind the header: decoding would fail with another message.
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(5000, 6000) + png_chunk(b"IDAT", b""))
    with pytest.raises(images.ImageError, match="bomb.png: 30,000,000 pixels are more"):
        read(path, max_pixels=29_999_999)


@pytest.mark.parametrize("suffix", (".png", ".bmp", ".jpg", ".tif"))
@pytest.mark.parametrize("channels", (1, 3))
def test_limit_counts_pixels_whatever_the_channels(tmp_path, suffix, channels):
    pixels = np.zeros((10, 10, 3), np.uint8)
    path = save(tmp_path / f"a{suffix}", pixels if channels == 3 else pixels[..., 0])
    assert images.read_image(path, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(images.ImageError, match="100 pixels are more than .* of 99"):
        images.read_image(path, max_pixels=99)


# Masks and label images.


@pytest.mark.parametrize("dtype", (np.uint8, np.uint16))
@pytest.mark.parametrize("suffix", (".png", ".tif"))
def test_every_mask_value_but_zero_is_foreground(tmp_path, suffix, dtype):
    values = np.array([[0, 1, 7], [128, 255, np.iinfo(dtype).max]], dtype)
    mask = images.read_mask(save(tmp_path / f"a{suffix}", values))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[0, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_mask_of_one_bit(tmp_path, suffix):
    mask = images.read_mask(save(tmp_path / f"a{suffix}", BITS))
    np.testing.assert_array_equal(mask, BITS)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", [1, 6])
def test_truth_whose_zero_is_white_is_read_as_it_is_stored(
    tmp_path, dtype, orientation
):
    """As ImageJ writes masks that it shows black on white."""
    stored = np.zeros((20, 30), dtype)
    stored[3:9, 4:20] = 1
    tag = (274, "H", 1, orientation, True)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="miniswhite", extratags=[tag])
    expected = stored if orientation == 1 else np.rot90(stored, -1)
    np.testing.assert_array_equal(images.read_mask(path), expected)
    np.testing.assert_array_equal(images.read_label_image(path) > 0, expected)
    assert images.read_image(path)[0, 0, 0] > images.read_image(path).min()


@pytest.mark.parametrize("read", [images.read_mask, images.read_label_image])
def test_truth_in_jpeg_is_refused(tmp_path, read):
    """Around edges, its zeros become ones and twos."""
    path = save(tmp_path / "a.jpg", np.zeros((8, 8), np.uint8))
    with pytest.raises(
        images.ImageError, match=r"a\.jpg: is a JPEG, .* save .* as PNG"
    ):
        read(path)


def test_mask_of_colours_ignores_transparency(tmp_path):
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[0, [1, 2, 3], [0, 1, 2]] = 1
    mask = images.read_mask(save(tmp_path / "a.png", pixels))
    np.testing.assert_array_equal(mask, [[0, 1, 1, 1]])


def test_mask_of_floats(tmp_path):
    pixels = np.array([[0.0, 0.25], [1.0, -0.0]], np.float32)
    mask = images.read_mask(save(tmp_path / "a.tif", pixels))
    np.testing.assert_array_equal(mask, [[0, 1], [1, 0]])


@pytest.mark.parametrize("suffix", (".png", ".tif"))
def test_more_than_255_labels(tmp_path, suffix):
    labels = np.arange(300, dtype=np.uint16).reshape(15, 20) * 200
    read = images.read_label_image(save(tmp_path / f"a{suffix}", labels))
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize("dtype", (np.uint32, np.int32, np.int64, np.float64))
def test_labels_up_to_the_largest_of_32_bits(tmp_path, dtype):
    labels = np.array([[0, 70_000], [2**31 - 1, 3]], dtype)
    read = images.read_label_image(save(tmp_path / "a.tif", labels))
    np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize(
    ("value", "dtype"),
    (
        (1.5, np.float32),
        (np.nan, np.float32),
        (np.inf, np.float32),
        (2.0**31, np.float64),
        (-1, np.int16),
        (2**31, np.uint32),
        (2**32 + 1, np.uint64),
    ),
)
def test_values_that_are_no_labels_are_refused(tmp_path, value, dtype):
    path = save(tmp_path / "a.tif", np.array([[0, value], [1, 2]], dtype))
    with pytest.raises(images.ImageError, match=f"{re.escape(str(path))}.*whole"):
        images.read_label_image(path)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_labels_of_one_bit(tmp_path, suffix):
    labels = images.read_label_image(save(tmp_path / f"a{suffix}", BITS))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels > 0, BITS)
    assert len(np.unique(labels)) == 2


@pytest.mark.parametrize("suffix", (".png", ".tif"))
def test_labels_of_colours_are_refused(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", RGB)
    with pytest.raises(images.ImageError, match=f"{re.escape(str(path))}.*has 3"):
        images.read_label_image(path)


# Names.


@pytest.mark.parametrize(
    ("name", "expected"),
    (
        ("a.png", True),
        ("a.JPG", True),
        ("a b.jpeg", True),
        ("a.bmp", True),
        ("a.Tif", True),
        ("a.ome.tiff", True),
        (".a.png", False),
        ("a.csv", False),
        ("png", False),
    ),
)
def test_images_are_known_by_their_names(tmp_path, name, expected):
    assert images.is_image(tmp_path / name) == expected


def test_unusual_names_are_read(tmp_path):
    assert_image(save(tmp_path / "Zellkern é 1.png", GRAY), GRAY / 255)
    assert_image(str(tmp_path / "Zellkern é 1.png"), GRAY / 255)
