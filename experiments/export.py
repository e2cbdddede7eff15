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
from nucseg_jax.files import replacing

_CHECKPOINT = shared.checkpoint()
_OUTPUT = shared.output("Folder to write; must not exist.")


def main() -> None:
    """Writes the folder and tells its size."""
    folder = pathlib.Path(_OUTPUT.value)
    if folder.exists():
        raise ValueError(f"{folder}: exists; delete it or name another folder")
    with replacing(folder) as temporary:
        export_for_inference(pretrained.resolve(_CHECKPOINT.value), temporary)
        pretrained.write_sums(temporary)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    shared.run(main)
