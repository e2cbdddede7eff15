"""Segments one large image in a process of its own, and tells what it took.

    python -m tests.inference.large_image FOLDER HEIGHT WIDTH NETWORK TILE SCALE

FOLDER must exist. NETWORK is one of `NETWORKS`, which has the width and targets of that
name; TILE 0 lets the segmenter choose. Prints JSON: nuclei, seconds, peak memory, and
the seconds that the bare network would take for the same pixels, by the median of its
times before and after.
"""

import json
import pathlib
import resource
import statistics
import sys
import time

import jax
import numpy as np
import skimage.draw
import tifffile

from nucseg_jax.config import TARGET_NAMES, DataConfig
from nucseg_jax.inference import tiling
from nucseg_jax.inference.jobs import Options, find_jobs
from nucseg_jax.inference.predictor import make_predict_fn
from nucseg_jax.inference.run import segment_files
from nucseg_jax.inference.segmenter import Segmenter
from nucseg_jax.network.unet_plus_plus import UNetPlusPlus
from tests.helpers import random_variables

PATCH = 500  # The image repeats a patch of this side.
DISCS = 100  # In each patch; some lie across its border.
# Features, and what is predicted.
NETWORKS = {
    "narrow": ((8, 16, 32), ("foreground",)),
    "small": ((16, 32, 64, 128), TARGET_NAMES),
    "base": ((32, 64, 128, 256), TARGET_NAMES),
    "shallow": ((48, 96, 192), TARGET_NAMES[:3]),
    "wide": ((32, 64, 128, 256, 512), TARGET_NAMES[:3]),
}


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


def write_image(path: pathlib.Path, shape: tuple[int, int], tile: int = 512) -> None:
    """Writes the image tile by tile, deflated."""
    patch = np.tile(draw_patch(), (3, 3))

    def tiles():
        for top in range(0, shape[0], tile):
            for left in range(0, shape[1], tile):
                rows, columns = top % PATCH, left % PATCH
                yield patch[rows : rows + tile, columns : columns + tile]

    tifffile.imwrite(
        path,
        tiles(),
        shape=shape,
        dtype=np.uint8,
        tile=(tile, tile),
        compression="deflate",
        bigtiff=True,
    )


def brightness_network(features: tuple[int, ...], num_targets: int = 1):
    """A network of real cost whose result is known: bright pixels are nuclei.

    Of several targets, the second and the fourth are nowhere and the third is as the
    first.
    """
    model = UNetPlusPlus(features=features, num_targets=num_targets)
    variables = jax.tree.map(np.zeros_like, random_variables(model))
    for name, module in variables["params"].items():
        if name.startswith("x_0"):
            for layer, leaves in module.items():
                if layer.startswith("Conv"):
                    leaves["kernel"][1, 1, 0, 0] = 1
                else:
                    leaves["scale"][:] = 1
        if name.startswith("head"):
            module["kernel"][0, 0, 0, ::2] = 40
            module["bias"][:] = -15
    for module in variables["batch_stats"].values():
        for leaves in module.values():
            leaves["var"][:] = 1
    return model, variables


def time_network(predict_fn, tile: int) -> list[float]:
    """Seconds of the bare network on random tiles, compilation left out."""
    image = np.random.default_rng(0).random((1, tile, tile, 3), np.float32)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        jax.block_until_ready(predict_fn(image))
        times.append(time.perf_counter() - start)
    return times[1:]


def main(
    folder: pathlib.Path,
    height: int,
    width: int,
    network: str,
    tile: int,
    scale: float,
) -> None:
    path = folder / "large.tif"
    write_image(path, (height, width))
    features, targets = NETWORKS[network]
    model, variables = brightness_network(features, len(targets))
    predict_fn = make_predict_fn(model, variables)
    tile = tile or tiling.largest_tile(
        width,
        features=features[0],
        depth=model.depth,
        num_targets=len(targets),
    )
    bare = time_network(predict_fn, tile)
    config = DataConfig(
        framing="crop", clahe_clip_limit=0, normalization="stretch", targets=targets
    )
    segmenter = Segmenter(predict_fn, config, depth=model.depth, tile=tile)
    save = ("labels", "mask", "overlay", "table")
    options = Options(save=save, scale=scale, max_pixels=1 << 28)
    start = time.perf_counter()
    (outcome,) = segment_files(find_jobs(path).jobs, segmenter, folder / "out", options)
    seconds = time.perf_counter() - start
    assert not outcome.error, outcome.error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Before and after: on a shared machine, its speed changes meanwhile.
    bare += time_network(predict_fn, tile)
    tiles = height * width * scale**2 / tile**2
    print(
        json.dumps(
            {
                "nuclei": outcome.num_nuclei,
                "seconds": round(seconds, 1),
                "peak_mib": peak >> 10,
                "tile": tile,
                "bare_network_seconds": round(statistics.median(bare) * tiles, 1),
            }
        )
    )


if __name__ == "__main__":
    folder, height, width, network, tile, scale = sys.argv[1:]
    main(
        pathlib.Path(folder),
        int(height),
        int(width),
        network,
        int(tile),
        float(scale),
    )
