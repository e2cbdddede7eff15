"""Starting JAX's device, so that what is wrong with it is told as that.

JAX is imported when it is started: programs know the error, and their loading processes
need no JAX.
"""

from __future__ import annotations

import os
from typing import Any


class DeviceError(RuntimeError):
    """JAX cannot use the device that it should; the message gives its reason."""


def start() -> list[Any]:
    """Returns JAX's devices, which otherwise start in the midst of their first use.

    Raises:
      DeviceError: If they cannot.
    """
    import jax

    try:
        return jax.devices()
    # JAX asserts what it has to, where there is no such platform.
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        wanted = os.environ.get("JAX_PLATFORMS")
        cure = f"; JAX_PLATFORMS={wanted} asks for it: unset that" if wanted else ""
        raise DeviceError(f"JAX cannot start its device ({reason}){cure}") from error
