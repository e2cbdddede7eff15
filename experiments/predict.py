"""Segments an image or a folder of images of any sizes.

    python -m experiments.predict --checkpoint=runs/demo --input=FOLDER --output=results

Writes results/masks, results/probabilities and results/overlays, a PNG for each image,
under the image's own name and at its own size.
"""

from __future__ import annotations

import sys

from absl import flags

from experiments import flags as shared

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a trained run.", required=True
)
_INPUT = flags.DEFINE_string(
    "input", None, "Image, or folder searched with its subfolders.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.", required=True)
_MODE = flags.DEFINE_enum(
    "mode", "accurate", ["accurate", "fast"], "All heads, or the one chosen head."
)
_THRESHOLD = flags.DEFINE_float(
    "threshold", 0.5, "Least probability of a nucleus.", 0.0, 1.0
)


def main() -> int:
    """Predicts every file; returns 1 if any could not be read."""
    import tqdm

    from experiments.device import describe_device
    from nucseg_jax.inference.run import find_jobs, predict_files
    from nucseg_jax.inference.segmenter import load_segmenter

    jobs = find_jobs(_INPUT.value)
    segmenter = load_segmenter(
        _CHECKPOINT.value, mode=_MODE.value, threshold=_THRESHOLD.value
    )
    print(describe_device())
    outcomes = predict_files(
        tqdm.tqdm(jobs, desc="predicting", unit="image"),
        segmenter.predict,
        _OUTPUT.value,
        threshold=_THRESHOLD.value,
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
