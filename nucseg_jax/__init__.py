"""nucseg_jax finds, counts and measures cell nuclei in microscope images.

    segmenter = nucseg_jax.load_segmenter("runs/demo")
    nuclei = segmenter(image)

The names below are imported when they are first used, so that `import nucseg_jax`
starts neither JAX nor a GPU.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nucseg_jax.inference.segmenter import Segmentation as Segmentation
    from nucseg_jax.inference.segmenter import load_segmenter as load_segmenter

__version__ = "0.1.0"

_HOMES = {
    "Segmentation": "nucseg_jax.inference.segmenter",
    "load_segmenter": "nucseg_jax.inference.segmenter",
}
__all__ = ["Segmentation", "__version__", "load_segmenter"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
