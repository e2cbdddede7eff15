"""The products that can be saved, and the writers that make them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from nucseg_jax.inference.outputs import overlays, rasters, summaries, tables, vectors
from nucseg_jax.inference.outputs.writer import Writer, WriterGroup
from nucseg_jax.inference.streams import PlaneInfo


@dataclasses.dataclass(frozen=True)
class Product:
    """One kind of file.

    Attributes:
      name: As asked for.
      help: What it is, in one line.
      folder: Below the output folder.
      suffix: Ending of the file's name.
      make: Makes its writer.
      streamed_suffix: Ending for images that are not held as a whole; "" = the same.
    """

    name: str
    help: str
    folder: str
    suffix: str
    make: Callable[[pathlib.Path, PlaneInfo], Writer]
    streamed_suffix: str = ""

    def path(
        self, folder: pathlib.Path, name: pathlib.PurePath, info: PlaneInfo
    ) -> pathlib.Path:
        """Where the product of an image lies."""
        streamed = self.streamed_suffix and not rasters.is_held(info)
        suffix = self.streamed_suffix if streamed else self.suffix
        return folder / self.folder / name.with_name(name.name + suffix)


def _make_labels_zarr(path: pathlib.Path, info: PlaneInfo) -> Writer:
    # zarr takes a third of a second to import.
    from nucseg_jax.inference.outputs.labels_zarr import LabelsZarrWriter

    return LabelsZarrWriter(path, info)


PRODUCTS = (
    Product(
        "labels",
        "label image, TIFF: 0 = background, each nucleus its id",
        "labels",
        ".tif",
        rasters.LabelsWriter,
    ),
    Product(
        "mask",
        "nuclei white on black, PNG (TIFF above 33 megapixels)",
        "masks",
        ".png",
        rasters.MaskWriter,
        streamed_suffix=".tif",
    ),
    Product(
        "probs",
        "probabilities, TIFF: 255 = certain, one channel a target",
        "probabilities",
        ".tif",
        rasters.ProbabilitiesWriter,
    ),
    Product(
        "overlay",
        "outlines and ids over the image, PNG, at most 4,000 pixels a side",
        "overlays",
        ".png",
        overlays.OverlayWriter,
    ),
    Product(
        "table",
        "measurements, CSV: one row a nucleus",
        "tables",
        ".csv",
        tables.TableWriter,
    ),
    Product(
        "geojson",
        "outlines and measurements for QuPath, GeoJSON",
        "geojson",
        ".geojson",
        vectors.GeoJsonWriter,
    ),
    Product(
        "rois",
        "outlines for Fiji, a zip of ImageJ ROIs",
        "rois",
        ".zip",
        vectors.RoisWriter,
    ),
    Product(
        "labels_zarr",
        "label image as OME-Zarr pyramid, for huge images",
        "labels_zarr",
        ".zarr",
        _make_labels_zarr,
    ),
)
_THUMBNAIL = Product(
    "thumbnail",
    "small picture for the report",
    "thumbnails",
    ".jpg",
    overlays.ThumbnailWriter,
)


# Blocks of an image that a cluster works on.
BLOCKS = "blocks"
# What a run makes in its output folder.
FOLDERS = frozenset({p.folder for p in (*PRODUCTS, _THUMBNAIL)} | {BLOCKS})

# Of the files of results.
SUFFIXES = frozenset(
    {p.suffix for p in (*PRODUCTS, _THUMBNAIL)}
    | {p.streamed_suffix for p in PRODUCTS if p.streamed_suffix}
    | {summaries.SUFFIX}
)


def check_save(save: Sequence[str]) -> None:
    """Checks names of products.

    Raises:
      ValueError: If one is unknown; lists those that are known.
    """
    known = [product.name for product in PRODUCTS]
    for name in save:
        if name not in known:
            raise ValueError(f"cannot save {name!r}; choose from {', '.join(known)}")


def create_writers(
    save: Sequence[str],
    folder: pathlib.Path,
    name: pathlib.PurePath,
    info: PlaneInfo,
    *,
    started: float | None = None,
) -> WriterGroup:
    """Creates the writers of one plane's files.

    A thumbnail for the report and the summary are always among them. The summary comes
    last: its presence means that the plane is done. It also lists what was made of the
    same file before.

    Args:
      save: Names of products, see `PRODUCTS`.
      folder: The output folder.
      name: Of the results below each product's folder, without ending: "b/c".
      info: Of the plane.
      started: When work on the plane began, by `time.perf_counter`; None = now.

    Raises:
      ValueError: If a product is unknown, or the name leads out of the folder.
      OSError: If a file cannot be created.
    """
    check_save(save)
    if name.is_absolute() or ".." in name.parts or not name.name:
        raise ValueError(f"{name}: is not a name inside the output folder")
    wanted = [product for product in PRODUCTS if product.name in save]
    paths = {p: p.path(folder, name, info) for p in [*wanted, _THUMBNAIL]}
    outputs = summaries.find_outputs(folder, name, info.stamp, info.settings) | {
        p.name: path.relative_to(folder).as_posix() for p, path in paths.items()
    }
    writers: list[Writer] = []
    try:
        for product, path in paths.items():
            writers.append(product.make(path, info))
        path = summaries.summary_path(folder, name)
        writers.append(
            tables.SummaryWriter(path, info, outputs=outputs, started=started)
        )
    except BaseException:
        WriterGroup(writers).abort()
        raise
    return WriterGroup(writers)
