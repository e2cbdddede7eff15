"""Finds out a file's format, by its content rather than its name, and opens it."""

from __future__ import annotations

import contextlib
import pathlib
import stat
from collections.abc import Iterator

from nucseg_jax.data.errors import ImageError
from nucseg_jax.data.formats import raster, tiff
from nucseg_jax.data.formats.stacks import Stack, check_stack, name_channels_apart

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# TIFF by other names, as microscopes and slide scanners give them.
TIFF_SUFFIXES = (".svs", ".ndpi", ".scn", ".bif", ".qptiff", ".btf")
ZARR_SUFFIX = ".zarr"
# Of images that cannot be opened, for a folder may be full of them.
FOREIGN_SUFFIXES = (
    *(".czi", ".zvi", ".lsm", ".nd2", ".lif", ".oib", ".oif", ".vsi", ".ims", ".dv"),
    *(".stk", ".mrxs"),
    *(".gif", ".webp", ".jp2", ".heic", ".dcm", ".mrc", ".nrrd", ".h5", ".npy"),
)

_ZARR_FILES = ("zarr.json", ".zgroup", ".zarray")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # The last two: BigTIFF.


@contextlib.contextmanager
def open_stacks(
    path: pathlib.Path, *, axes: str | None, max_pixels: int
) -> Iterator[list[Stack]]:
    """Opens a file of any supported format.

    Args:
      path: PNG, JPEG, BMP or TIFF file, or OME-Zarr folder.
      axes: What the user says of the axes, a letter each; None = nothing.
      max_pixels: Limit on pixels that have to be decoded at once.

    Raises:
      ImageError: If the file is missing or empty, of another format, damaged or too
        large, or its axes are unknown. Reading regions raises errors of all kinds, so
        call it within `errors.naming`.
    """
    with contextlib.ExitStack() as closing:
        stacks = closing.enter_context(_open(path, axes, max_pixels))
        for stack in stacks:
            check_stack(path, stack)
        yield [name_channels_apart(stack) for stack in stacks]


def _open(
    path: pathlib.Path, axes: str | None, max_pixels: int
) -> contextlib.AbstractContextManager[list[Stack]]:
    if _is_folder(path):
        if is_zarr(path):
            # Here, because it takes half a second and few need it.
            from nucseg_jax.data.formats import ome_zarr

            return ome_zarr.open_ome_zarr(path, axes=axes, max_pixels=max_pixels)
        what = "Zarr metadata" if path.suffix.lower() == ZARR_SUFFIX else "image file"
        raise ImageError(f"{path}: no such file, but a folder without {what}")
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(_TIFF_STARTS):
        return tiff.open_tiff(path, axes=axes, max_pixels=max_pixels)
    if raster.find_reader(start) is not None:
        return raster.open_raster(path, max_pixels=max_pixels)
    if not start:
        raise ImageError(f"{path}: the file is empty (0 bytes)")
    raise ImageError(
        f"{path}: is no PNG, JPEG, BMP or TIFF, whatever its name; its first bytes "
        f"are {start!r}"
    )


def is_zarr(folder: pathlib.Path) -> bool:
    """Tells by what it holds whether a folder is a Zarr, or an image within one."""
    return any((folder / name).exists() for name in _ZARR_FILES)


def is_jpeg(path: pathlib.Path) -> bool:
    """Tells whether a file, if it is there, is a JPEG."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return raster.find_reader(file.read(8)) is raster.READERS[raster.JPEG]


def _is_folder(path: pathlib.Path) -> bool:
    """Tells folders from files; what is neither could not be read to its end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"{path}: no such file") from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise ImageError(f"{path}: is not a regular file")
    return stat.S_ISDIR(mode)
