"""Convolutions of oneDNN, put together to programs that run on XLA's buffers.

Images are [B, H, W, C], kernels [rows, columns, C, F]. oneDNN reads and writes them
where they lie; only kernels and their gradients are copied, between this layout and one
of its own.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nucseg_jax.network import onednn_library
from nucseg_jax.network.onednn_library import Handle
from nucseg_jax.network.xla_ffi import Address

Size = tuple[int, int, int]  # Batch, height, width.

DTYPES = {"float32": 3, "bfloat16": 2}  # dnnl_data_type_t

# Which argument of an operation a buffer is (DNNL_ARG_*).
SOURCE, RESULT, KERNEL, BIAS = 1, 17, 33, 41
SOURCE_GRAD, RESULT_GRAD, KERNEL_GRAD, BIAS_GRAD = 129, 145, 161, 169
_SCRATCHPAD = 80
# Of a layer that ends in a ReLU and an affine map. These have no number of their own:
# oneDNN counts what is done to a result.
SCALE, SHIFT = -1, -2
_POST_OPERATION, _SECOND_OPERAND = 32768, 2

# Further constants of oneDNN's C interface, version 3 (dnnl_types.h).
_TRAINING, _INFERENCE, _USER_SCRATCHPAD, _ANY_LAYOUT = 64, 96, 1, 1
_WANTED_KERNEL, _WANTED_KERNEL_GRAD, _WANTED_SCRATCHPAD = 131, 132, 136
_RELU, _ADD, _MULTIPLY = 0x20, 0x1FFF0, 0x1FFF1
# oneDNN's axes are [B, C, H, W] and [F, C, rows, columns]; these lie in memory, the
# slowest first, as ours do.
_IMAGE_AXES, _KERNEL_AXES = (0, 2, 3, 1), (2, 3, 1, 0)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution, or a transposed one that makes squares of pixels.

    Attributes:
      kind: A key of `_KINDS`.
      size: Of its image.
      channels: Of its image.
      features: Channels of its result.
    """

    kind: str
    size: Size
    channels: int
    features: int

    @property
    def result_size(self) -> Size:
        """Of its result."""
        batch, height, width = self.size
        times = _KINDS[self.kind].enlarges
        return batch, height * times, width * times

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """In oneDNN's order of axes."""
        side = _KINDS[self.kind].side
        return self.features, self.channels, side, side


@dataclasses.dataclass(frozen=True)
class _Kind:
    algorithm: int
    side: int
    stride: int
    padding: int
    enlarges: int


_KINDS = {
    "convolution": _Kind(algorithm=0x1, side=3, stride=1, padding=1, enlarges=1),
    "deconvolution": _Kind(algorithm=0xA, side=2, stride=2, padding=0, enlarges=2),
}


class Program:
    """Operations of one dtype, run in order on buffers given by address."""

    def __init__(self, dtype: str):
        self._library = onednn_library.load()
        self._dtype = DTYPES[dtype]
        self._steps: list[tuple[Handle, Any]] = []
        self._buffers: list[tuple[Handle, int]] = []
        self._temporaries: list[tuple[Handle, int]] = []
        self._temporary_bytes = 0

    def run(self, addresses: Sequence[Address]) -> None:
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
        self, layer: Layer, buffers: Mapping[int, int], *, accumulate: bool = False
    ) -> None:
        """Adds a layer.

        Args:
          layer: What to compute.
          buffers: Index of the buffer of SOURCE, KERNEL, RESULT and, if any, BIAS.
            With SCALE and SHIFT, float32, what is negative in the result becomes
            zero before it is scaled and shifted.
          accumulate: Add to what the result holds instead of replacing it.
        """
        bias = self._describe((layer.features,), (0,)) if BIAS in buffers else None
        vector = self._describe_vector(layer) if SCALE in buffers else None
        attributes = self._attributes(accumulate, vector)
        operator = self._forward(layer, _INFERENCE, bias, attributes)
        memories = {
            SOURCE: self._source(layer, buffers[SOURCE]),
            KERNEL: self._pack_kernel(layer, operator, buffers[KERNEL]),
            RESULT: self._result(layer, buffers[RESULT]),
        }
        if bias:
            memories[BIAS] = self._buffer(bias, buffers[BIAS])
        if vector:
            # The sum, if there is one, and the ReLU are done before.
            for number, what in enumerate((SCALE, SHIFT), 3 if accumulate else 2):
                argument = number * _POST_OPERATION | _SECOND_OPERAND
                memories[argument] = self._buffer(vector, buffers[what])
        self._add_step(operator, memories)

    def add_source_gradient(self, layer: Layer, buffers: Mapping[int, int]) -> None:
        """Adds the gradient of a layer's image.

        Args:
          layer: Whose gradient.
          buffers: Index of the buffer of KERNEL, RESULT_GRAD and SOURCE_GRAD.
        """
        operator = self._backward(
            "data",
            layer,
            self._describe_source(layer),
            self._describe_any(layer.kernel_shape, self._dtype),
        )
        memories = {
            RESULT_GRAD: self._result(layer, buffers[RESULT_GRAD]),
            KERNEL: self._pack_kernel(layer, operator, buffers[KERNEL]),
            SOURCE_GRAD: self._source(layer, buffers[SOURCE_GRAD]),
        }
        self._add_step(operator, memories)

    def add_parameter_gradients(self, layer: Layer, buffers: Mapping[int, int]) -> None:
        """Adds the gradients of a layer's kernel and bias, in float32.

        Args:
          layer: Whose gradients.
          buffers: Index of the buffer of SOURCE, RESULT_GRAD, KERNEL_GRAD and, if
            wanted, BIAS_GRAD.
        """
        float32, bias = DTYPES["float32"], None
        if BIAS_GRAD in buffers:
            bias = self._describe((layer.features,), (0,), float32)
        operator = self._backward(
            "weights",
            layer,
            self._describe_source(layer),
            self._describe_any(layer.kernel_shape, float32),
            bias,
        )
        packed = self._library.query(operator, _WANTED_KERNEL_GRAD)
        memories = {
            SOURCE: self._source(layer, buffers[SOURCE]),
            RESULT_GRAD: self._result(layer, buffers[RESULT_GRAD]),
            KERNEL_GRAD: self._temporary(packed),
        }
        if bias:
            memories[BIAS_GRAD] = self._buffer(bias, buffers[BIAS_GRAD])
        self._add_step(operator, memories)
        plain = self._describe(layer.kernel_shape, _KERNEL_AXES, float32)
        kernel_grad = self._buffer(plain, buffers[KERNEL_GRAD])
        self._add_copy((memories[KERNEL_GRAD], packed), (kernel_grad, plain))

    def _forward(
        self, layer: Layer, purpose: int, bias: Handle | None, attributes: Handle
    ) -> Handle:
        return self._library.create(
            f"{layer.kind}_forward_primitive_desc",
            self._library.engine,
            purpose,
            _KINDS[layer.kind].algorithm,
            self._describe_source(layer),
            self._describe_any(layer.kernel_shape, self._dtype),
            bias,
            self._describe_result(layer),
            *_geometry(layer),
            attributes,
        )

    def _backward(self, what: str, layer: Layer, *described: Handle | None) -> Handle:
        forward = self._forward(layer, _TRAINING, None, self._attributes())
        return self._library.create(
            f"{layer.kind}_backward_{what}_primitive_desc",
            self._library.engine,
            _KINDS[layer.kind].algorithm,
            *described,
            self._describe_result(layer),
            *_geometry(layer),
            forward,
            self._attributes(),
        )

    def _pack_kernel(self, layer: Layer, operator: Handle, index: int) -> Handle:
        """Adds the copying of a kernel into the layout that an operation wants."""
        wanted = self._library.query(operator, _WANTED_KERNEL)
        plain = self._describe(layer.kernel_shape, _KERNEL_AXES)
        packed = self._temporary(wanted)
        self._add_copy((self._buffer(plain, index), plain), (packed, wanted))
        return packed

    def _add_copy(
        self, source: tuple[Handle, Handle], result: tuple[Handle, Handle]
    ) -> None:
        """Adds the copying of a memory of one description into one of another."""
        engine = self._library.engine
        operator = self._library.create(
            "reorder_primitive_desc", source[1], engine, result[1], engine, None
        )
        self._add_step(operator, {SOURCE: source[0], RESULT: result[0]})

    def _add_step(self, operator: Handle, memories: dict[int, Handle]) -> None:
        scratchpad = self._library.query(operator, _WANTED_SCRATCHPAD)
        if self._library.size_of(scratchpad):
            memories = memories | {_SCRATCHPAD: self._temporary(scratchpad)}
        primitive = self._library.create("primitive", operator)
        arguments = (onednn_library.Argument * len(memories))(*memories.items())
        self._steps.append((primitive, arguments))

    def _describe_source(self, layer: Layer) -> Handle:
        batch, *sides = layer.size
        return self._describe((batch, layer.channels, *sides), _IMAGE_AXES)

    def _describe_result(self, layer: Layer) -> Handle:
        batch, *sides = layer.result_size
        return self._describe((batch, layer.features, *sides), _IMAGE_AXES)

    def _describe(
        self, shape: tuple[int, ...], axes: tuple[int, ...], dtype: int | None = None
    ) -> Handle:
        strides, step = [0] * len(shape), 1
        for axis in reversed(axes):
            strides[axis] = step
            step *= shape[axis]
        return self._library.create(
            "memory_desc",
            len(shape),
            onednn_library.integers(shape),
            dtype or self._dtype,
            onednn_library.integers(strides),
            suffix="_with_strides",
        )

    def _describe_any(self, shape: tuple[int, ...], dtype: int) -> Handle:
        """Leaves the layout to oneDNN."""
        return self._library.create(
            "memory_desc",
            len(shape),
            onednn_library.integers(shape),
            dtype,
            _ANY_LAYOUT,
            suffix="_with_tag",
        )

    def _describe_vector(self, layer: Layer) -> Handle:
        """A scale or a shift for each feature."""
        shape = (1, layer.features, 1, 1)
        return self._describe(shape, _IMAGE_AXES, DTYPES["float32"])

    def _attributes(
        self, accumulate: bool = False, vector: Handle | None = None
    ) -> Handle:
        """What is done to a result: added to before, then ReLU, scaled, shifted."""
        library = self._library
        attributes = library.create("primitive_attr")
        library.call("primitive_attr_set_scratchpad_mode", attributes, _USER_SCRATCHPAD)
        operations = library.create("post_ops")
        zero, one = ctypes.c_float(0.0), ctypes.c_float(1.0)
        if accumulate:
            library.call("post_ops_append_sum", operations, one, 0, 0)
        if vector:
            library.call("post_ops_append_eltwise", operations, _RELU, zero, zero)
            library.call("post_ops_append_binary", operations, _MULTIPLY, vector)
            library.call("post_ops_append_binary", operations, _ADD, vector)
        library.call("primitive_attr_set_post_ops", attributes, operations)
        return attributes

    def _source(self, layer: Layer, index: int) -> Handle:
        return self._buffer(self._describe_source(layer), index)

    def _result(self, layer: Layer, index: int) -> Handle:
        return self._buffer(self._describe_result(layer), index)

    def _buffer(self, description: Handle, index: int) -> Handle:
        memory = self._library.create_memory(description)
        self._buffers.append((memory, index))
        return memory

    def _temporary(self, description: Handle) -> Handle:
        memory = self._library.create_memory(description)
        self._temporaries.append((memory, self._temporary_bytes))
        num_bytes = self._library.size_of(description)
        alignment = onednn_library.ALIGNMENT
        self._temporary_bytes += -(-num_bytes // alignment) * alignment
        return memory


def _geometry(layer: Layer) -> list[Any]:
    """Strides, dilation and padding before and behind."""
    kind = _KINDS[layer.kind]
    pairs = ((kind.stride,) * 2, (0, 0), (kind.padding,) * 2, (kind.padding,) * 2)
    return [onednn_library.integers(pair) for pair in pairs]
