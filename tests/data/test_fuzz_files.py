"""Truncated and bit-flipped files of each format: an error or a picture, no more."""

import functools
import io
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nucseg_jax.data import images
from nucseg_jax.data.intensity import intensity_range, to_rgb
from nucseg_jax.data.planes import open_planes
from tests.data.files import encode, encode_png16, encode_tiff, noise, write_ome_zarr

# Between 60 and 255, so that black is a sign of lost pixels.
GRAY = noise((48, 40)) // 4 * 3 + 60
DEEP = noise((48, 40), np.uint16) // 2 + 9000
RGB = noise((48, 40, 3)) // 4 * 3 + 60
STACK = noise((3, 48, 40)) // 4 * 3 + 60
MAX_PIXELS = 1 << 20
MOST_READ = 256


def palette() -> bytes:
    buffer = io.BytesIO()
    picture = PIL.Image.fromarray(GRAY // 16).convert("P")
    picture.putpalette((RGB[0, :16] // 2 + 100).ravel().tolist())
    picture.save(buffer, "PNG", transparency=bytes([0, 9, 255]))
    return buffer.getvalue()


def pyramid() -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as writer:
        options = {"tile": (16, 16), "compression": "lzw", "photometric": "minisblack"}
        writer.write(DEEP, subifds=1, metadata={"axes": "YX"}, **options)
        writer.write(DEEP[::2, ::2], subfiletype=1, **options)
    return buffer.getvalue()


MAKERS = {
    "gray.png": lambda: encode(GRAY, "PNG"),
    "deep.png": lambda: encode_png16(DEEP),
    "palette.png": palette,
    "gray.bmp": lambda: encode(GRAY, "BMP"),
    "rgb.jpg": lambda: encode(RGB, "JPEG", quality=90),
    "progressive.jpg": lambda: encode(RGB, "JPEG", progressive=True),
    "raw.tif": lambda: encode_tiff(DEEP),
    "strips.tif": lambda: encode_tiff(GRAY, rowsperstrip=7, compression="zlib"),
    "lzw.tif": lambda: encode_tiff(RGB, photometric="rgb", compression="lzw"),
    "zstd.tif": lambda: encode_tiff(DEEP, compression="zstd", predictor=2),
    "packbits.tif": lambda: encode_tiff(GRAY, compression="packbits"),
    "jpeg.tif": lambda: encode_tiff(GRAY, compression="jpeg", tile=(16, 16)),
    "jpeg2000.tif": lambda: encode_tiff(DEEP, compression="jpeg2000"),
    "big.tif": lambda: encode_tiff(DEEP, bigtiff=True, tile=(16, 16)),
    "float.tif": lambda: encode_tiff(noise((48, 40), np.float32) + 1),
    "double.tif": lambda: encode_tiff(noise((48, 40), np.float64) + 1),
    "imagej.tif": lambda: encode_tiff(STACK, imagej=True, metadata={"axes": "TYX"}),
    "shaped.tif": lambda: encode_tiff(
        STACK, compression="zlib", metadata={"axes": "ZYX"}
    ),
    "stack.ome.tif": lambda: encode_tiff(STACK, ome=True, metadata={"axes": "TYX"}),
    "pyramid.ome.tif": pyramid,
}


@functools.cache
def original(name: str) -> bytes:
    return MAKERS[name]()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("fuzz")


def read_planes(path: pathlib.Path) -> list[np.ndarray]:
    """Reads all pictures, and checks what every picture must be."""
    with open_planes(path, max_pixels=MAX_PIXELS) as planes:
        return [check_plane(plane) for plane in planes[:4]]


def check_plane(plane) -> np.ndarray:
    rows, columns = (slice(0, min(n, MOST_READ)) for n in plane.shape[:2])
    pixels = plane.read(rows, columns)
    assert pixels.shape == (rows.stop, columns.stop, len(plane.channels))
    assert pixels.dtype == plane.dtype
    with np.errstate(invalid="ignore"):  # Some NaN warn when they are looked at.
        assert pixels.any(), "black"
    assert plane.pixel_size is None or 0 < plane.pixel_size < np.inf
    if plane.shape[0] * plane.shape[1] <= MAX_PIXELS:
        seen = pixels[..., list(plane.segmented)]
        rgb = to_rgb(seen, value_range=intensity_range(plane))
        assert rgb.shape == (rows.stop, columns.stop, 3)
        assert np.isfinite(rgb).all() and rgb.min() >= 0 and rgb.max() <= 1
    return pixels


def check_truncated(folder: pathlib.Path, name: str, part: float) -> None:
    """A file without its end is refused, or lacks nothing that matters."""
    data = original(name)
    path = folder / name
    path.write_bytes(data)
    whole = read_planes(path)
    path.write_bytes(data[: int(len(data) * part)])
    try:
        found = read_planes(path)
    except images.ImageError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return
    assert len(found) == len(whole)
    for pixels, expected in zip(found, whole, strict=True):
        np.testing.assert_array_equal(pixels, expected)


def check_flipped(folder: pathlib.Path, name: str, places: list[int]) -> None:
    """A file with changed bits is refused, or gives a picture of its shape."""
    data = bytearray(original(name))
    for place in places:
        data[place // 8 % len(data)] ^= 1 << place % 8
    path = folder / name
    path.write_bytes(bytes(data))
    try:
        read_planes(path)
    except images.ImageError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    for read in (images.read_image, images.read_mask, images.read_label_image):
        try:
            pixels = read(path, max_pixels=MAX_PIXELS)
        except images.ImageError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert np.isfinite(pixels).all()


parts = st.floats(0, 1, exclude_max=True)
# Half of the flips near the start, where the headers of most formats are.
flips = st.lists(st.integers(0, 4000) | st.integers(0, 1 << 40), min_size=1, max_size=4)


@pytest.mark.parametrize("name", MAKERS)
@given(part=parts)
def test_truncated(folder, name, part):
    check_truncated(folder, name, part)


@pytest.mark.parametrize("name", MAKERS)
@given(places=flips)
@example(places=[35_850_922_206])  # In float.tif a NaN that warns.
@example(places=[273, 464])  # jpeg.tif becomes one of 1 bit, zero as white.
def test_flipped(folder, name, places):
    check_flipped(folder, name, places)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=3000)
@given(part=parts)
def test_truncated_often(folder, name, part):
    check_truncated(folder, name, part)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=3000)
@given(places=flips)
def test_flipped_often(folder, name, places):
    check_flipped(folder, name, places)


# OME-Zarr: the same for each of a folder's files.


@pytest.fixture(scope="module", params=("0.4", "0.5"))
def zarr_image(folder, request) -> pathlib.Path:
    path = folder / f"original_{request.param}.zarr"
    return write_ome_zarr(path, STACK, "zyx", version=request.param, chunks=(1, 16, 16))


@given(number=st.integers(0, 1000), part=parts)
def test_truncated_zarr(folder, zarr_image, number, part):
    check_zarr(folder, zarr_image, number, lambda data: data[: int(len(data) * part)])


@given(number=st.integers(0, 1000), places=flips)
def test_flipped_zarr(folder, zarr_image, number, places):
    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        for place in places:
            changed[place // 8 % len(data)] ^= 1 << place % 8
        return bytes(changed)

    check_zarr(folder, zarr_image, number, flip)


def check_zarr(folder, source, number, damage) -> None:
    path = folder / "damaged.zarr"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source, path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    # Half of the time, a file of metadata.
    described = [file for file in files if file.name.startswith((".", "zarr.json"))]
    chosen = (files, described)[number % 2]
    file = chosen[number // 2 % len(chosen)]
    file.write_bytes(damage(file.read_bytes()))
    try:
        read_planes(path)
    except images.ImageError as error:
        assert "\n" not in str(error) and str(path) in str(error)
