"""The C interface of oneDNN, a library of a CPU's fastest convolutions, by ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from nucseg_jax.network.xla_ffi import Address

Handle = ctypes.c_void_p

PACKAGE, _FILE = "onednn-cpu-gomp", "libdnnl.so.3"
ALIGNMENT = 64

# Constants of version 3 (dnnl_types.h).
_CPU, _IN_ORDER = 1, 1


class OneDnnError(RuntimeError):
    """oneDNN refused a call; the message tells which, and its status."""


class Argument(ctypes.Structure):
    """What a primitive is executed with: which argument, and its memory."""

    _fields_ = [("argument", ctypes.c_int), ("memory", Handle)]


class Library:
    """The library, once loaded; a failing call raises OneDnnError.

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

    def has_instructions(self, bits: int) -> bool:
        """Whether the processor has all of these (`dnnl_cpu_isa_t`)."""
        return self._short.dnnl_get_effective_cpu_isa() & bits == bits

    def point(self, memory: Handle, address: Address) -> None:
        """Lets a memory be the one at an address."""
        self.call("memory_set_data_handle", memory, Handle(address))

    def workspace(self, num_bytes: int) -> Address:
        """Returns the address of so many aligned bytes, valid until the next call."""
        if self._workspace.size < num_bytes + ALIGNMENT:
            self._workspace = np.empty(num_bytes + ALIGNMENT, np.uint8)
        return -(-self._workspace.ctypes.data // ALIGNMENT) * ALIGNMENT

    def execute(self, primitive: Handle, arguments: Any) -> None:
        """Runs a primitive to its end."""
        execute = self._long.dnnl_primitive_execute
        status = execute(primitive, self._stream, len(arguments), arguments)
        _check(status, "primitive_execute")


@functools.cache
def load() -> Library:
    """Loads the library of the wheel.

    Raises:
      importlib.metadata.PackageNotFoundError: The wheel is not installed.
      OSError: It cannot be loaded.
    """
    wheel = importlib.metadata.distribution(PACKAGE)
    files = [file for file in wheel.files or () if file.name == _FILE]
    if not files:
        raise OSError(f"the wheel has no {_FILE}")
    return Library(str(files[0].locate()))


def integers(values: Sequence[int]) -> Any:
    """Makes an array of dimensions."""
    return (ctypes.c_int64 * 12)(*values)  # oneDNN's own number of dimensions.


def _check(status: int, function: str) -> None:
    if status:
        raise OneDnnError(f"dnnl_{function} returned status {status}")
