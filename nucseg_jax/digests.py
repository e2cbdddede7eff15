"""Checksums of arrays and settings: what is read must be what was written.

Orbax keeps none for bulk data: a flipped bit would come back as another weight.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import numpy as np


def digest_tree(tree: Any) -> dict[str, str]:
    """Returns the checksum of each array in a pytree, by its path.

    Dtype and shape count too. SHA-256, hexadecimal.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(key): _digest_array(leaf) for key, leaf in leaves}


def digest_json(value: Any) -> str:
    """Returns the checksum of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_array(leaf: Any) -> str:
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(f"{array.dtype} {np.shape(leaf)} ".encode())
    # As bytes: the buffer protocol does not know bfloat16.
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
