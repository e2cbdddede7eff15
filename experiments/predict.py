"""Segments an image or a folder of images of any sizes.

    python -m experiments.predict --checkpoint=runs/demo --input=FOLDER --output=results

Writes results/masks, results/probabilities and results/overlays, a PNG for each image,
under the image's own name and at its own size.
"""

from __future__ import annotations

import sys

import tqdm

from experiments import flags as shared
from experiments.device import start_device
from nucseg_jax.inference.run import find_jobs, predict_files
from nucseg_jax.inference.segmenter import load_segmenter

_CHECKPOINT = shared.checkpoint()
_INPUT = shared.source("Image, or folder searched with its subfolders.")
_OUTPUT = shared.output("Folder for the results.")
_MODE = shared.mode()
_THRESHOLD = shared.threshold("Least probability of a nucleus.")


def main() -> int:
    """Predicts every file; returns 1 if any could not be read."""
    threshold = shared.parse_threshold(_THRESHOLD.value)
    jobs = find_jobs(_INPUT.value)
    segmenter = load_segmenter(_CHECKPOINT.value, mode=_MODE.value, threshold=threshold)
    print(start_device())
    outcomes = predict_files(
        tqdm.tqdm(jobs, desc="predicting", unit="image"),
        segmenter.predict,
        _OUTPUT.value,
        threshold=threshold,
    )
    failed = [outcome for outcome in outcomes if outcome.error]
    done = len(outcomes) - len(failed)
    nuclei = sum(outcome.num_nuclei for outcome in outcomes)
    print(f"{done} of {len(outcomes)} images, {nuclei:,} nuclei -> {_OUTPUT.value}")
    for outcome in failed:
        print(f"error: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    shared.run(main)
