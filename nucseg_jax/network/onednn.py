"""Convolution and upsampling by oneDNN, the library behind PyTorch's on CPU.

XLA's own CPU convolution reaches a third to nine tenths of oneDNN's speed, least with
few channels. oneDNN comes as a wheel for Linux on x86-64. Elsewhere, and for other
dtypes than float32, `supports` says no, and the caller takes XLA's way.

Arrays are [B, H, W, C], kernels [rows, columns, C, F]. oneDNN reads and writes XLA's
buffers where they lie; only kernels are copied, into a layout of its own.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nucseg_jax.network import xla_ffi

Array = jax.Array
Size = tuple[int, int, int]  # Batch, height, width.
Handle = ctypes.c_void_p

_PACKAGE, _FILE = "onednn-cpu-gomp", "libdnnl.so.3"

# Constants of oneDNN's C interface, version 3 (dnnl_types.h, dnnl_common_types.h).
_CPU, _IN_ORDER, _INFERENCE, _USER_SCRATCHPAD, _ANY_LAYOUT = 1, 1, 96, 1, 1
_DTYPES = {"float32": 3}
_SOURCE, _RESULT, _KERNEL, _BIAS, _SCRATCHPAD = 1, 17, 33, 41, 80
_WANTED_KERNEL, _WANTED_SCRATCHPAD = 131, 136
# Of each operation: its algorithm, side of its kernel, stride, padding.
_OPERATIONS = {"convolution": (0x1, 3, 1, 1), "deconvolution": (0xA, 2, 2, 0)}
# oneDNN's axes are [B, C, H, W] and [F, C, rows, columns]; these lie in memory, the
# slowest first, as ours do.
_IMAGE_AXES, _KERNEL_AXES = (0, 2, 3, 1), (2, 3, 1, 0)
_ALIGNMENT = 64


class OneDnnError(RuntimeError):
    """oneDNN refused a call; the message tells which, and its status."""


def convolve(inputs: Sequence[Array], kernel: Array, bias: Array) -> Array:
    """Convolves the concatenation of `inputs` with a 3x3 kernel, zeros around.

    Args:
      inputs: Each [B, H, W, C_k].
      kernel: [3, 3, sum of C_k, F].
      bias: [F]. All of one dtype that is supported.

    Returns:
      [B, H, W, F].
    """
    batch, height, width, _ = inputs[0].shape
    size = (batch, height, width)
    channels = tuple(x.shape[-1] for x in inputs)
    kernels = jax.lax.split(kernel, channels, axis=2)
    name = _register_convolution(size, channels, bias.size, str(bias.dtype))
    return _call(name, (*size, bias.size), [*inputs, *kernels, bias])


def upsample(image: Array, kernel: Array, bias: Array) -> Array:
    """Makes squares of pixels: [B, H, W, C], [2, 2, C, F] -> [B, 2H, 2W, F].

    Tap [r, c] of the kernel makes pixel [r, c] of each square.
    """
    batch, height, width, channels = image.shape
    size = (batch, height, width)
    name = _register_upsampling(size, channels, bias.size, str(bias.dtype))
    return _call(name, (*_doubled(size), bias.size), [image, kernel, bias])


def _call(name: str, shape: tuple[int, ...], operands: list[Array]) -> Array:
    result = jax.ShapeDtypeStruct(shape, operands[0].dtype)
    return jax.ffi.ffi_call(name, result, vmap_method="sequential")(*operands)


@functools.cache
def supports(dtype: str) -> bool:
    """Whether oneDNN is here and has kernels of this dtype for this processor."""
    if dtype not in _DTYPES or why_not():
        return False
    try:
        _convolution_program((1, 8, 8), (16,), 16, dtype)
    except OneDnnError:
        return False
    return True


@functools.cache
def why_not() -> str:
    """Says why oneDNN cannot be used on this machine; empty if it can."""
    try:
        _library()
    except importlib.metadata.PackageNotFoundError:
        return f"{_PACKAGE} is not installed"
    except (OSError, OneDnnError) as error:
        return f"{_PACKAGE} cannot be loaded: {error}"
    return ""


def _register_convolution(
    size: Size, channels: tuple[int, ...], features: int, dtype: str
) -> str:
    name = f"nucseg_convolve_{size}_{channels}_{features}_{dtype}"
    build = functools.partial(_convolution_program, size, channels, features, dtype)
    _register(name, build)
    return name


def _convolution_program(
    size: Size, channels: tuple[int, ...], features: int, dtype: str
) -> _Program:
    """Convolves one input after the other, each adding to the result so far."""
    program, number = _Program(dtype), len(channels)
    bias, result = 2 * number, 2 * number + 1
    for k, depth in enumerate(channels):
        buffers = {_SOURCE: k, _KERNEL: number + k, _RESULT: result}
        if k == 0:
            buffers[_BIAS] = bias
        program.add(
            "convolution", size, size, depth, features, buffers, accumulate=k > 0
        )
    return program


def _register_upsampling(size: Size, channels: int, features: int, dtype: str) -> str:
    name = f"nucseg_upsample_{size}_{channels}_{features}_{dtype}"
    build = functools.partial(_upsampling_program, size, channels, features, dtype)
    _register(name, build)
    return name


def _upsampling_program(
    size: Size, channels: int, features: int, dtype: str
) -> _Program:
    program = _Program(dtype)
    buffers = {_SOURCE: 0, _KERNEL: 1, _BIAS: 2, _RESULT: 3}
    program.add("deconvolution", size, _doubled(size), channels, features, buffers)
    return program


def _register(name: str, build: Callable[[], _Program]) -> None:
    """Makes a program known to XLA; it is built when it first runs.

    Functions are traced for CPU on machines that then compile them for a GPU.
    """
    build_once = functools.cache(build)
    xla_ffi.register(name, lambda addresses: build_once().run(addresses))


def _doubled(size: Size) -> Size:
    return size[0], 2 * size[1], 2 * size[2]


class _Program:
    """Operations of one dtype, run in order on buffers given by address."""

    def __init__(self, dtype: str):
        self._library = _library()
        self._dtype = _DTYPES[dtype]
        self._steps: list[tuple[Handle, Any]] = []
        self._buffers: list[tuple[Handle, int]] = []
        self._temporaries: list[tuple[Handle, int]] = []
        self._temporary_bytes = 0

    def run(self, addresses: Sequence[xla_ffi.Address]) -> None:
        """Runs the operations on buffers in the order of their indices."""
        library = self._library
        # One program at a time: each uses all cores, and they share the workspace.
        with library.lock:
            workspace = library.workspace(self._temporary_bytes)
            for memory, index in self._buffers:
                library.point(memory, addresses[index])
            for memory, offset in self._temporaries:
                library.point(memory, workspace + offset)
            for primitive, arguments in self._steps:
                library.execute(primitive, arguments)

    def add(
        self,
        operation: str,
        size: Size,
        result_size: Size,
        channels: int,
        features: int,
        buffers: Mapping[int, int],
        *,
        accumulate: bool = False,
    ) -> None:
        """Adds an operation, and before it the packing of its kernel.

        Args:
          operation: A key of `_OPERATIONS`.
          size: Of its image.
          result_size: Of its result.
          channels: Of its image.
          features: Channels of its result.
          buffers: Index of the buffer of each argument.
          accumulate: Add to what the result holds instead of replacing it.
        """
        algorithm, side, stride, padding = _OPERATIONS[operation]
        kernel_shape = (features, channels, side, side)
        described = {
            _SOURCE: self._describe((size[0], channels, *size[1:]), _IMAGE_AXES),
            _KERNEL: self._describe(kernel_shape, _KERNEL_AXES),
            _BIAS: self._describe((features,), (0,)),
            _RESULT: self._describe((size[0], features, *result_size[1:]), _IMAGE_AXES),
        }
        operator = self._library.create(
            f"{operation}_forward_primitive_desc",
            self._library.engine,
            _INFERENCE,
            algorithm,
            described[_SOURCE],
            self._describe_any(kernel_shape),
            described[_BIAS] if _BIAS in buffers else None,
            described[_RESULT],
            *map(_integers, ((stride,) * 2, (0,) * 2, (padding,) * 2, (padding,) * 2)),
            self._attributes(accumulate),
        )
        memories = {
            a: self._buffer(described[a], index) for a, index in buffers.items()
        }
        packed = self._library.query(operator, _WANTED_KERNEL)
        memories[_KERNEL] = self._pack(memories[_KERNEL], described[_KERNEL], packed)
        scratchpad = self._library.query(operator, _WANTED_SCRATCHPAD)
        memories[_SCRATCHPAD] = self._temporary(scratchpad)
        self._add_step(operator, memories)

    def _pack(self, plain: Handle, description: Handle, wanted: Handle) -> Handle:
        """Adds the copying of a kernel into the layout that an operation wants."""
        engine = self._library.engine
        operator = self._library.create(
            "reorder_primitive_desc", description, engine, wanted, engine, None
        )
        packed = self._temporary(wanted)
        self._add_step(operator, {_SOURCE: plain, _RESULT: packed})
        return packed

    def _add_step(self, operator: Handle, memories: Mapping[int, Handle]) -> None:
        primitive = self._library.create("primitive", operator)
        arguments = (_Argument * len(memories))(*memories.items())
        self._steps.append((primitive, arguments))

    def _describe(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> Handle:
        strides, step = [0] * len(shape), 1
        for axis in reversed(axes):
            strides[axis] = step
            step *= shape[axis]
        return self._library.create(
            "memory_desc",
            len(shape),
            _integers(shape),
            self._dtype,
            _integers(strides),
            suffix="_with_strides",
        )

    def _describe_any(self, shape: tuple[int, ...]) -> Handle:
        """Leaves the layout to oneDNN."""
        return self._library.create(
            "memory_desc",
            len(shape),
            _integers(shape),
            self._dtype,
            _ANY_LAYOUT,
            suffix="_with_tag",
        )

    def _attributes(self, accumulate: bool) -> Handle:
        library = self._library
        attributes = library.create("primitive_attr")
        library.call("primitive_attr_set_scratchpad_mode", attributes, _USER_SCRATCHPAD)
        if accumulate:
            added = library.create("post_ops")
            library.call("post_ops_append_sum", added, ctypes.c_float(1.0), 0, 0)
            library.call("primitive_attr_set_post_ops", attributes, added)
        return attributes

    def _buffer(self, description: Handle, index: int) -> Handle:
        memory = self._library.create_memory(description)
        self._buffers.append((memory, index))
        return memory

    def _temporary(self, description: Handle) -> Handle:
        memory = self._library.create_memory(description)
        self._temporaries.append((memory, self._temporary_bytes))
        num_bytes = self._library.size_of(description)
        self._temporary_bytes += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return memory


class _Argument(ctypes.Structure):
    """What a primitive is executed with: which argument, and its memory."""

    _fields_ = [("argument", ctypes.c_int), ("memory", Handle)]


class _Library:
    """The C interface of oneDNN; a failing call raises OneDnnError.

    Attributes:
      engine: The CPU.
      lock: Whoever executes holds it.
    """

    def __init__(self, path: str):
        # Python's lock is given up only for calls that take long: to get it back can
        # take milliseconds while other threads run Python.
        self._long, self._short = ctypes.CDLL(path), ctypes.PyDLL(path)
        self._short.dnnl_primitive_desc_query_md.restype = Handle
        self._short.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        self.lock = threading.Lock()
        self.engine = self.create("engine", _CPU, ctypes.c_size_t(0))
        self._stream = self.create("stream", self.engine, _IN_ORDER)
        self._workspace = np.empty(0, np.uint8)

    def call(self, function: str, *args: Any) -> None:
        """Calls dnnl_`function`."""
        _check(getattr(self._short, f"dnnl_{function}")(*args), function)

    def create(self, kind: str, *args: Any, suffix: str = "") -> Handle:
        """Creates an object, which lives as long as the process."""
        handle = Handle()
        self.call(f"{kind}_create{suffix}", ctypes.byref(handle), *args)
        return handle

    def create_memory(self, description: Handle) -> Handle:
        """Creates a memory that points nowhere yet."""
        return self.create("memory", description, self.engine, Handle(None))

    def query(self, operator: Handle, what: int) -> Handle:
        """Asks an operation for a description of one of its arguments."""
        return Handle(self._short.dnnl_primitive_desc_query_md(operator, what, 0))

    def size_of(self, description: Handle) -> int:
        """Bytes that an array of this description takes."""
        return self._short.dnnl_memory_desc_get_size(description)

    def point(self, memory: Handle, address: xla_ffi.Address) -> None:
        """Lets a memory be the one at an address."""
        self.call("memory_set_data_handle", memory, Handle(address))

    def workspace(self, num_bytes: int) -> xla_ffi.Address:
        """Returns the address of so many aligned bytes, valid until the next call."""
        if self._workspace.size < num_bytes + _ALIGNMENT:
            self._workspace = np.empty(num_bytes + _ALIGNMENT, np.uint8)
        return -(-self._workspace.ctypes.data // _ALIGNMENT) * _ALIGNMENT

    def execute(self, primitive: Handle, arguments: Any) -> None:
        """Runs a primitive to its end."""
        execute = self._long.dnnl_primitive_execute
        status = execute(primitive, self._stream, len(arguments), arguments)
        _check(status, "primitive_execute")


@functools.cache
def _library() -> _Library:
    wheel = importlib.metadata.distribution(_PACKAGE)
    files = [file for file in wheel.files or () if file.name == _FILE]
    if not files:
        raise OSError(f"the wheel has no {_FILE}")
    return _Library(str(files[0].locate()))


def _check(status: int, function: str) -> None:
    if status:
        raise OneDnnError(f"dnnl_{function} returned status {status}")


def _integers(values: Sequence[int]) -> Any:
    return (ctypes.c_int64 * 12)(*values)  # oneDNN's own number of dimensions.
