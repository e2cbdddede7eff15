"""Reads regions of TIFF pages, decoding only the strips or tiles that they touch.

tifffile knows how to decode a strip or tile; what is done here is to find the ones
that a region needs, and to notice when they are damaged: tifffile's own reading of
regions fills what is missing with zeros, and some decoders give half a picture. Half a
stream of JPEG XR, which has no mark at its end, is not noticed.
"""

from __future__ import annotations

import functools
import math
import pathlib
import threading

import numpy as np
import tifffile
from tifffile import COMPRESSION

from nucseg_jax.data import errors
from nucseg_jax.data.formats import regions

_RAW_BLOCK_BYTES = 1 << 20  # Of rows read at once where nothing is compressed.

# These decoders give half a picture where the stream ends early. A whole stream ends
# with this mark; some writers append filling bytes.
_END_MARK = b"\xff\xd9"
_FILLING = b"\0\xff"
_MOST_FILLING = 64

_LONGEST_COUNTED = 1 << 32  # Bytes; counts of longer strips do not fit a TIFF's tags.
# Their decoder gives bytes for bits.
_FAX = (COMPRESSION.CCITTRLE, COMPRESSION.CCITT_T4, COMPRESSION.CCITT_T6)
_JPEG = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.ALT_JPEG)
_JPEG_2000_START = b"\xff\x4f\xff\x51"

Page = tifffile.TiffPage | tifffile.TiffFrame


class Pages:
    """The pages of a series, all of one shape, read by region. Threads may do so.

    Args:
      path: The file, for errors.
      series: Its pages.
      cache: For decoded blocks, one for all series of the file.
      lock: For reading the file, one for all its series.
      max_pixels: Limit on the pixels of a strip or tile that is decoded as one.

    Attributes:
      count: Number of pages.
      height: Of a page.
      width: Of a page.
      samples: Values of a pixel.
      dtype: Of a value.

    Raises:
      ImageError: If data are missing, or blocks are larger than the limit.
    """

    def __init__(
        self,
        path: pathlib.Path,
        series: tifffile.TiffPageSeries,
        cache: regions.BlockCache,
        lock: threading.Lock,
        *,
        max_pixels: int,
    ) -> None:
        page = series.keyframe
        planes, depth, self.height, self.width, contiguous = page.shaped
        if depth != 1:
            raise errors.ImageError(
                f"{path}: holds a volume in one page; save it as a stack of pages"
            )
        if page.dtype is None:
            raise ValueError(f"numbers of {page.bitspersample} bits are unknown")
        self.dtype = page.dtype
        self.samples = planes * contiguous
        self.count = math.prod(series.shape) // max(math.prod(page.shape), 1)
        self._path = path
        self._keyframe = page
        self._planes = planes
        self._contiguous = contiguous
        self._cache = cache
        self._lock = lock
        # Uncompressed pages one behind the other need no look at each of them, and
        # ImageJ writes only the first of them.
        self._start = series.dataoffset if page.is_final else None
        self._pages = [page] if self._start is not None else self._list_pages(series)
        self._block_shape = self._find_block_shape(max_pixels)
        self._check_data()
        down, across = self._grid
        values = across * math.prod(self._block_shape) * self.samples
        cache.make_room(values * self.dtype.itemsize)

    def read(self, number: int, rows: slice, columns: slice) -> np.ndarray:
        """Reads a region of a page.

        Returns:
          [h, w, samples].

        Raises:
          ImageError: If data are damaged. Decoders raise other errors, too.
        """
        parts = [
            regions.read_blocks(
                functools.partial(self._load, number, plane),
                rows,
                columns,
                block_shape=self._block_shape,
                samples=self._contiguous,
                dtype=self.dtype,
            )
            for plane in range(self._planes)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """The files that the pages lie in, in their order, if these are several."""
        parts = dict.fromkeys(page.parent for page in self._pages)
        paths = [pathlib.Path(part.filehandle.path) for part in parts]
        return tuple(paths) if len(paths) > 1 else ()

    @property
    def _grid(self) -> tuple[int, int]:
        """Number of blocks from top to bottom and from left to right."""
        height, width = self._block_shape
        return -(-self.height // height), -(-self.width // width)

    def _list_pages(self, series: tifffile.TiffPageSeries) -> list[Page]:
        if self.count > len(series):
            raise self._damage(f"has {len(series)} of {self.count} pages")
        pages = [series[number] for number in range(self.count)]
        found = [page for page in pages if page is not None]
        if len(found) < len(pages):
            raise self._damage(f"lacks {len(pages) - len(found)} of {len(pages)} pages")
        return found

    def _find_block_shape(self, max_pixels: int) -> tuple[int, int]:
        """Height and width of what is read at once."""
        page = self._keyframe
        if page.is_final:
            row_bytes = self.width * self._contiguous * self.dtype.itemsize
            return max(_RAW_BLOCK_BYTES // max(row_bytes, 1), 1), max(self.width, 1)
        shape = (page.rowsperstrip, page.imagewidth)
        if page.is_tiled:
            shape = (page.tilelength, page.tilewidth)
        wide = -(-self._contiguous // 4)  # More than RGBA weighs more than a pixel.
        errors.check_size(self._path, math.prod(shape) * wide, max_pixels)
        if 0 in shape:
            raise self._damage(f"has strips or tiles of {shape} pixels")
        return shape

    def _check_data(self) -> None:
        """Refuses a file whose end is missing before anything of it is read."""
        page = self._keyframe
        written = sum(page.databytecounts)
        if page.is_final and 0 < written < page.nbytes < _LONGEST_COUNTED:
            raise self._damage(f"has {written:,} of {page.nbytes:,} bytes of pixels")
        if self._start is not None:
            end = self._start + self.count * self._keyframe.nbytes
            self._check_end(end, self._keyframe)
            return
        blocks = math.prod(self._grid) * self._planes
        for page in self._pages:
            if page.is_final:
                self._check_end(page.dataoffsets[0] + self._keyframe.nbytes, page)
            elif min(len(page.dataoffsets), len(page.databytecounts)) < blocks:
                raise self._damage(f"has {len(page.dataoffsets)} of {blocks} blocks")
            else:
                ends = np.add(page.dataoffsets[:blocks], page.databytecounts[:blocks])
                self._check_end(int(ends.max(initial=0)), page)
                if not any(page.databytecounts):
                    raise self._damage("holds no pixels")

    def _check_end(self, end: int, page: Page) -> None:
        size = page.parent.filehandle.size
        if end > size:
            raise self._damage(f"ends at byte {size:,} instead of {end:,}")

    def _load(self, number: int, plane: int, i: int, j: int) -> np.ndarray:
        """Gives a block, [h, w, samples of a plane]."""
        read = self._read_raw if self._keyframe.is_final else self._decode
        place = number, plane, i, j
        return self._cache.get((id(self), *place), lambda: read(*place))

    def _read_raw(self, number: int, plane: int, i: int, j: int) -> np.ndarray:
        """Reads rows of an uncompressed page, [h, W, samples of a plane]."""
        page = self._keyframe
        top = i * self._block_shape[0]
        shape = (
            min(self._block_shape[0], self.height - top),
            self.width,
            self._contiguous,
        )
        row_bytes = self.width * self._contiguous * self.dtype.itemsize
        if self._start is None:
            page = self._pages[number]
            offset = page.dataoffsets[0]
        else:
            offset = self._start + number * page.nbytes
        offset += (plane * self.height + top) * row_bytes
        data = self._read_bytes(page, offset, shape[0] * row_bytes)
        stored = self.dtype.newbyteorder(page.parent.byteorder)
        return np.frombuffer(data, stored).reshape(shape).astype(self.dtype, copy=False)

    def _decode(self, number: int, plane: int, i: int, j: int) -> np.ndarray:
        """Decodes a strip or tile, [h, w, samples of a plane]."""
        page = self._pages[number]
        down, across = self._grid
        index = (plane * down + i) * across + j
        offset, size = page.dataoffsets[index], page.databytecounts[index]
        if offset == size == 0:  # Left out on purpose, as empty parts of slides are.
            shape = (*self._block_shape, self._contiguous)
            return np.full(shape, self._keyframe.nodata, self.dtype)
        data = self._read_bytes(page, offset, size)
        self._check_stream(data)
        with self._lock:  # The decoder is made at its first use.
            keyframe = page.keyframe
            assert keyframe is not None
            decode = keyframe.decode
        tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
        block, _, _ = decode(data, index, **tables)
        assert block is not None
        is_fax = keyframe.compression in _FAX
        if self.dtype == bool and block.dtype != bool and not is_fax:
            raise self._damage(f"tells of 1 bit and holds {block.dtype}")
        return block[0]

    def _read_bytes(self, page: Page, offset: int, size: int) -> bytes:
        handle = page.parent.filehandle
        with self._lock:
            if handle.closed:  # As are the other files of an OME-TIFF.
                handle.open()
            handle.seek(offset)
            data = handle.read(size)
        if len(data) < max(size, 1):
            raise self._damage("ends within its pixels")
        return data

    def _check_stream(self, data: bytes) -> None:
        """Refuses a stream that ends early where the decoder would not notice."""
        is_jpeg = (
            self._keyframe.compression in _JPEG and self._keyframe.jpegheader is None
        )
        if is_jpeg or data.startswith(_JPEG_2000_START):
            if not data[-_MOST_FILLING:].rstrip(_FILLING).endswith(_END_MARK):
                raise self._damage("has compressed pixels that end too early")

    def _damage(self, what: str) -> errors.ImageError:
        return errors.ImageError(f"{self._path}: the file is damaged, it {what}")
