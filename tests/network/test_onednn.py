"""What oneDNN computes is tested in test_convolution; here, how it is reached."""

import ctypes
import platform
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nucseg_jax.network import onednn, onednn_library, xla_ffi

needs_onednn = pytest.mark.skipif(
    not onednn.supports("float32"), reason=onednn.why_not()
)


def arguments(batch, channels=(8, 4)):
    rng = np.random.default_rng(batch)
    inputs = [rng.normal(size=(batch, 16, 16, c)).astype(np.float32) for c in channels]
    kernel = rng.normal(size=(3, 3, sum(channels), 8)).astype(np.float32)
    return inputs, kernel, np.zeros(8, np.float32)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="has no wheel"
)
def test_the_wheel_can_be_used_where_there_is_one():
    reason = onednn.why_not()
    assert not reason or "libgomp" in reason  # Which slim systems lack.


def test_a_missing_wheel_is_told(monkeypatch):
    monkeypatch.setattr(onednn_library, "PACKAGE", "no-such-package")
    monkeypatch.setattr(onednn_library, "load", onednn_library.load.__wrapped__)
    for function in (onednn.why_not, onednn.supports):
        monkeypatch.setattr(onednn, function.__name__, function.__wrapped__)
    assert "no-such-package is not installed" in onednn.why_not()
    assert not onednn.supports("float32")


@pytest.mark.parametrize("instructions", [0x7, 0x27, 0xE7], ids=hex)
def test_what_is_supported_depends_on_the_processor(monkeypatch, instructions):
    """AVX2, AVX-512, and AVX-512 with bfloat16."""

    class Library:
        def has_instructions(self, bits):
            return instructions & bits == bits

    monkeypatch.setattr(onednn_library, "load", Library)
    monkeypatch.setattr(onednn, "_convolve", lambda *_, **__: None)
    for function in (onednn.why_not, onednn.supports, onednn.supports_gradients):
        monkeypatch.setattr(onednn, function.__name__, function.__wrapped__)
    assert onednn.supports("float32")
    assert onednn.supports("bfloat16") == (instructions == 0xE7)
    assert onednn.supports_gradients("float32") == (instructions != 0x7)


def test_other_dtypes_are_not_supported():
    assert not onednn.supports("float64")
    assert not onednn.supports("int32")


UNFINISHED = """
import jax, jax.numpy as jnp
from nucseg_jax.network import onednn

kernel, bias = jnp.full((3, 3, 64, 64), 1e-3), jnp.zeros(64)

@jax.jit
def convolve_often(image):
    for _ in range(150):  # Short programs run while they are asked for.
        image = onednn.convolve([image], kernel, bias) + 1
    return image

result = convolve_often(jnp.ones((1, 128, 128, 64)))
{end}
"""


@needs_onednn
@pytest.mark.parametrize("end", ["", "del result", "raise SystemExit(3)"])
def test_python_may_end_while_a_program_runs(end):
    """XLA's threads hang when they call into a Python that has ended."""
    command = [sys.executable, "-c", UNFINISHED.format(end=end)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 * ("raise" in end)
    assert not done.stdout + done.stderr


@needs_onednn
def test_threads_do_not_disturb_each_other():
    """All convolutions share one workspace and one stream."""
    convolve = jax.jit(onednn.convolve)
    given = [arguments(batch) for batch in (1, 2, 3, 4)]
    expected = [np.asarray(convolve(*args)) for args in given]
    wrong = []

    def work(k):
        for _ in range(30):
            if not np.array_equal(convolve(*given[k]), expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_onednn
def test_same_input_gives_the_same_bits():
    inputs, kernel, bias = arguments(3)

    @jax.jit
    def compute(inputs, kernel, bias):
        result = onednn.convolve(inputs, kernel, bias)
        return result, onednn.gradients(inputs, kernel, result)

    first = compute(inputs, kernel, bias)
    for _ in range(5):
        jax.tree.map(
            np.testing.assert_array_equal, compute(inputs, kernel, bias), first
        )


@needs_onednn
def test_a_call_that_fails_is_named():
    with pytest.raises(
        onednn_library.OneDnnError, match="dnnl_memory_desc_create_with_tag"
    ):
        onednn_library.load().create("memory_desc", -1, None, 3, 1, suffix="_with_tag")


def test_what_a_handler_raises_reaches_the_caller():
    def fail(addresses):
        raise ValueError("no such image")

    xla_ffi.register("nucseg_test_fails", fail)
    call = jax.ffi.ffi_call(
        "nucseg_test_fails", jax.ShapeDtypeStruct((2,), jnp.float32)
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="ValueError: no such image"):
        jax.block_until_ready(jax.jit(call)(jnp.ones(2)))


def test_a_handler_is_given_operands_then_results():
    def add(addresses):
        left, right, result = (
            np.ctypeslib.as_array((ctypes.c_float * 3).from_address(address))
            for address in addresses
        )
        result[:] = left + 2 * right

    xla_ffi.register("nucseg_test_adds", add)
    call = jax.ffi.ffi_call("nucseg_test_adds", jax.ShapeDtypeStruct((3,), jnp.float32))
    result = jax.jit(call)(jnp.arange(3.0), jnp.ones(3))
    np.testing.assert_array_equal(result, [2, 3, 4])
