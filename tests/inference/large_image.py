"""Segments one large image in a process of its own, and tells what it took.

    python large_image.py FOLDER SIDE TILE

Prints JSON: nuclei, seconds, peak memory, and the share of the time that the bare
network would take for the same pixels.
"""

import json
import pathlib
import resource
import sys
import time

import jax
import numpy as np
import skimage.draw
import tifffile

from nucseg_jax.config import DataConfig
from nucseg_jax.inference.predictor import make_predict_fn
from nucseg_jax.inference.run import Options, find_jobs, segment_files
from nucseg_jax.inference.segmenter import Segmenter
from nucseg_jax.network.unet_plus_plus import UNetPlusPlus
from tests.helpers import random_variables

PATCH = 500  # The image repeats a patch of this side.
DISCS = 100  # In each patch; some lie across its border.


def draw_patch() -> np.ndarray:
    """Discs of many sizes, apart from each other, on a torus: uint8."""
    rng = np.random.default_rng(0)
    patch = np.zeros((PATCH, PATCH), np.uint8)
    step = PATCH // round(DISCS**0.5)
    for row in range(0, PATCH, step):
        for column in range(0, PATCH, step):
            rows, columns = skimage.draw.disk((row, column), rng.integers(5, 15))
            patch[rows % PATCH, columns % PATCH] = 200
    return patch


def write_image(path: pathlib.Path, side: int, tile: int = 512) -> None:
    """Writes the image tile by tile, deflated."""
    patch = np.tile(draw_patch(), (3, 3))

    def tiles():
        for top in range(0, side, tile):
            for left in range(0, side, tile):
                rows, columns = top % PATCH, left % PATCH
                yield patch[rows : rows + tile, columns : columns + tile]

    tifffile.imwrite(
        path,
        tiles(),
        shape=(side, side),
        dtype=np.uint8,
        tile=(tile, tile),
        compression="deflate",
        bigtiff=True,
    )


def brightness_network(features: tuple[int, ...]):
    """A network of real cost whose result is known: bright pixels are nuclei."""
    model = UNetPlusPlus(features=features)
    variables = jax.tree.map(np.zeros_like, random_variables(model))
    for name, module in variables["params"].items():
        if name.startswith("x_0"):
            for layer, leaves in module.items():
                if layer.startswith("Conv"):
                    leaves["kernel"][1, 1, 0, 0] = 1
                else:
                    leaves["scale"][:] = 1
        if name.startswith("head"):
            module["kernel"][0, 0, 0, 0] = 40
            module["bias"][:] = -15
    for module in variables["batch_stats"].values():
        for leaves in module.values():
            leaves["var"][:] = 1
    return model, variables


def seconds_a_pixel(predict_fn, tile: int) -> float:
    """Speed of the bare network on random tiles, the fastest of five."""
    image = np.random.default_rng(0).random((1, tile, tile, 3), np.float32)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(predict_fn(image))
        times.append(time.perf_counter() - start)
    return min(times) / tile**2


def main(folder: pathlib.Path, side: int, tile: int) -> None:
    path = folder / "large.tif"
    write_image(path, side)
    model, variables = brightness_network((8, 16, 32))
    predict_fn = make_predict_fn(model, variables)
    bare = seconds_a_pixel(predict_fn, tile)
    config = DataConfig(framing="crop", clahe_clip_limit=0, normalization="stretch")
    segmenter = Segmenter(predict_fn, config, depth=model.depth, tile=tile)
    options = Options(save=("labels", "table"), max_pixels=1 << 28)
    start = time.perf_counter()
    (outcome,) = segment_files(find_jobs(path), segmenter, folder / "out", options)
    seconds = time.perf_counter() - start
    assert not outcome.error, outcome.error
    print(
        json.dumps(
            {
                "nuclei": outcome.num_nuclei,
                "seconds": round(seconds, 1),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
                "bare_network_seconds": round(bare * side**2, 1),
            }
        )
    )


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
