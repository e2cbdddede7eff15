"""Label image, mask and probabilities as images, held when small, streamed when not."""

from __future__ import annotations

import numpy as np

from nucseg_jax.inference.outputs import pictures, tiff
from nucseg_jax.inference.outputs.writer import Writer
from nucseg_jax.inference.streams import Band, PlaneInfo

# Pixels up to which an image is held until it is complete: 128 MiB of labels. Larger
# ones are streamed to tiles. PNG cannot be streamed here, and most programs refuse
# larger ones anyway.
HELD_PIXELS = 2**25


def is_held(info: PlaneInfo) -> bool:
    """Tells if a plane is held as a whole before it is written."""
    return info.height * info.width <= HELD_PIXELS


class _RasterWriter(Writer):
    """Writes what each band is turned to, [C, h, W]."""

    needs_bands = True
    streamed_dtype: type[np.generic] = np.uint8

    def _open(self) -> None:
        self._held: list[np.ndarray] = []
        self._stream = None
        if not is_held(self.info):
            names = self._names()
            self._stream = tiff.TiffStream(
                self._temporary,
                (len(names), self.info.height, self.info.width),
                self.streamed_dtype,
                self.info,
                names,
            )
            self._open_files.callback(self._stream.abort)

    def _names(self) -> tuple[str, ...]:
        """Names of the channels."""
        raise NotImplementedError

    def _convert(self, band: Band) -> np.ndarray:
        """What to write of a band, [C, h, W]."""
        raise NotImplementedError

    def _write_whole(self, planes: np.ndarray) -> None:
        """Writes the whole of a small image, [C, H, W]."""
        tiff.write_tiff(self._temporary, planes, self.info, self._names())

    def _add_band(self, band: Band) -> None:
        planes = self._convert(band)
        if self._stream:
            self._stream.add(planes)
        else:
            self._held.append(planes)

    def _complete(self) -> None:
        if self._stream:
            self._stream.finish()
        else:
            self._write_whole(np.concatenate(self._held, axis=1))
            self._held.clear()


class LabelsWriter(_RasterWriter):
    """Writes the label image: uint16 while ids fit, else uint32.

    The largest id of a streamed image is not known when its first rows are written, so
    that streamed images are always uint32.
    """

    streamed_dtype = np.uint32

    def _names(self) -> tuple[str, ...]:
        return ("nuclei",)

    def _convert(self, band: Band) -> np.ndarray:
        return band.labels[None]

    def _write_whole(self, planes: np.ndarray) -> None:
        fits = planes.max(initial=0) <= np.iinfo(np.uint16).max
        super()._write_whole(planes.astype(np.uint16 if fits else np.uint32))


class MaskWriter(_RasterWriter):
    """Writes 255 where there is a nucleus: PNG, or tiled TIFF when streamed."""

    def _names(self) -> tuple[str, ...]:
        return ("mask",)

    def _convert(self, band: Band) -> np.ndarray:
        return pictures.mask_picture(band.labels > 0)[None]

    def _write_whole(self, planes: np.ndarray) -> None:
        pictures.save_png(self._temporary, planes[0])


class ProbabilitiesWriter(_RasterWriter):
    """Writes probabilities in 256 steps, 255 = certain, one page a target.

    Eight bits: a network's error is far above 1/255, every program opens them (Fiji's
    own reader refuses half-precision floats), and float32 is four times as large.
    """

    def _names(self) -> tuple[str, ...]:
        return self.info.targets

    def _convert(self, band: Band) -> np.ndarray:
        # One by one: what comes in between is as large as a band's target.
        targets = np.moveaxis(band.probs, 2, 0)
        return np.stack([pictures.probability_picture(target) for target in targets])
