"""Packs a trained network for others: half precision, checksums, no optimizer.

    python -m experiments.export --checkpoint=runs/mine --output=mine

The folder is used as the run's own: --checkpoint=mine. It holds the best checkpoint
and the tuned thresholds.
"""

from __future__ import annotations

import pathlib

from experiments import flags as shared
from nucseg_jax import pretrained
from nucseg_jax.checkpoints import export_for_inference

_CHECKPOINT = shared.checkpoint("Folder of a trained run.")
_OUTPUT = shared.output("Folder to write; must not exist.")


def main() -> None:
    """Writes the folder and tells its size."""
    folder = pathlib.Path(_OUTPUT.value)
    export_for_inference(_CHECKPOINT.value, folder)
    pretrained.write_sums(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    shared.run(main)
