import jax.numpy as jnp
import numpy as np
import pytest

from nucseg_jax.digests import digest_json, digest_tree


def one(array):
    (digest,) = digest_tree({"a": array}).values()
    return digest


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.int32])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_every_bit_counts(dtype, shape):
    array = np.ones(shape, dtype)
    flipped = array.copy()
    flipped.reshape(-1).view(np.uint8)[-1] ^= 1
    assert one(array) == one(jnp.asarray(array)) != one(flipped)


def test_dtype_and_shape_count():
    zeros = np.zeros(4, np.float32)
    others = [zeros.astype(np.int32), zeros.reshape(2, 2), zeros.view(np.uint8)]
    assert len({one(array) for array in [zeros, *others]}) == 4


def test_paths_tell_arrays_apart():
    tree = {"a": {"b": np.zeros(1)}, "c": np.zeros(1)}
    assert list(digest_tree(tree)) == ["['a']['b']", "['c']"]


def test_json_digest_ignores_the_order_of_keys_alone():
    assert digest_json({"a": 1, "b": [2, 3]}) == digest_json({"b": [2, 3], "a": 1})
    assert digest_json({"b": [2, 3]}) != digest_json({"b": [3, 2]})
