"""Lets XLA's CPU programs call functions of this process, without a compiler.

XLA calls a "handler" with a frame of C structs that hold the addresses of the operands
and of the result. The structs below mirror those of `xla/ffi/api/c_api.h` in jaxlib,
version 0 of that interface, as far as a handler reads them.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

import jax

Address = int

_METADATA_EXTENSION = 1
_INTERNAL_ERROR = 13


class _Extension(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
    ]


class _Version(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    ]


class _Metadata(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("version", _Version),
        ("traits", ctypes.c_uint32),
    ]


class _MetadataExtension(ctypes.Structure):
    _fields_ = [
        ("base", _Extension),
        ("metadata", ctypes.POINTER(_Metadata)),
    ]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
    ]


class _Buffers(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("number", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    ]

    def addresses(self) -> list[Address]:
        return [self.buffers[k].contents.data for k in range(self.number)]


class _ErrorArguments(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    ]


_CreateError = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorArguments))


class _Api(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("create_error", _CreateError),
    ]


class _Frame(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("extension", ctypes.POINTER(_Extension)),
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("operands", _Buffers),
        ("results", _Buffers),
    ]


_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Frame))
# XLA keeps the handlers' bare addresses: they must live as long as the process.
_handlers: dict[str, Any] = {}


def register(name: str, function: Callable[[list[Address]], None]) -> None:
    """Makes `function` known to XLA on CPU, for `jax.ffi.ffi_call`.

    Args:
      name: For `ffi_call`; a name that is known already keeps its first function.
      function: Is given the addresses of all operands, then of all results, on one of
        XLA's threads. What it raises ends the program with a JaxRuntimeError.
    """
    if name in _handlers:
        return
    if not _handlers:
        atexit.register(_keep_client)
    handler = _Handler(lambda frame: _handle(frame.contents, function))
    _handlers[name] = handler
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")


def _keep_client() -> None:
    """Lets Python end while programs still run.

    XLA's threads cannot call into Python then, so that these programs never end. JAX's
    client would wait for them when it is taken down: it stays, and the process goes.
    """
    with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS may leave out the CPU.
        client = jax.local_devices(backend="cpu")[0].client
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


def _handle(frame: _Frame, function: Callable[[list[Address]], None]) -> int | None:
    if frame.extension and frame.extension.contents.type == _METADATA_EXTENSION:
        return _introduce(frame)
    try:
        function(frame.operands.addresses() + frame.results.addresses())
    except Exception as error:  # It must not be lost on XLA's thread.
        message = f"{type(error).__name__}: {error}".encode()
        arguments = _ErrorArguments(
            ctypes.sizeof(_ErrorArguments), None, message, _INTERNAL_ERROR
        )
        return frame.api.contents.create_error(ctypes.byref(arguments))
    return None


def _introduce(frame: _Frame) -> None:
    """Answers that the handler speaks the version of the interface it is asked in."""
    extension = ctypes.cast(frame.extension, ctypes.POINTER(_MetadataExtension))
    metadata = extension.contents.metadata.contents
    metadata.version.major = frame.api.contents.version.major
    metadata.version.minor = frame.api.contents.version.minor
    metadata.traits = 0
