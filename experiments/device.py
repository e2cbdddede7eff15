"""Tells which device the computation runs on, and keeps what was compiled for it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
from typing import Any

import jax

from experiments.versions import find_version
from nucseg_jax import device
from nucseg_jax.network import onednn

# Flags of /proc/cpuinfo, and what of them makes convolutions faster, the best first.
_INSTRUCTIONS = {
    "amx_tile": "AMX",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "albumentations", "numpy")


def start_device() -> str:
    """Turns on the compilation cache and returns `describe_device`'s line."""
    keep_compilations()
    return describe_device()


def describe_device() -> str:
    """Returns one line: device, how many, and the JAX that drives them."""
    devices = device.start()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = (
            f"CPU, {len(os.sched_getaffinity(0))} cores" if _has_affinity() else "CPU"
        )
    details = f"jax {jax.__version__}"
    if devices[0].platform == "cpu":
        details += f", {_kernels()}"
    line = f"device: {len(devices)} x {kind} ({details})"
    warning = idle_gpu()
    return f"{line}\nWARNING: {warning}" if warning else line


def describe_machine() -> dict[str, Any]:
    """Returns what measured figures depend on: hardware and software."""
    return {
        "device": describe_device(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "instructions": _instructions(),
        "python": platform.python_version(),
        "versions": {name: find_version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


def _commit() -> str:
    """Names the git commit that runs, and whether files differ from it; "" if none."""
    root = pathlib.Path(__file__).parents[1]
    if not (root / ".git").exists() or not shutil.which("git"):
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"]
    told = subprocess.run(command, capture_output=True, text=True)
    return told.stdout.strip()


def _processor() -> str:
    """Names the processor, as far as the system tells."""
    told = _cpuinfo()
    if "model name" not in told:
        return platform.processor() or platform.machine()
    return f"{told['model name']}, family {told.get('cpu family', 'unknown')}"


def _instructions() -> str:
    """Names the processor's best vector instructions; "" if the system is silent."""
    flags = _cpuinfo().get("flags", "").split()
    return next((name for flag, name in _INSTRUCTIONS.items() if flag in flags), "")


def _cpuinfo() -> dict[str, str]:
    """Reads what Linux tells of the last core; empty elsewhere."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _kernels() -> str:
    """Says whose convolutions a CPU runs, and why if they are the slower ones."""
    reason = onednn.why_not()
    if reason:
        return f"convolutions by XLA: {reason}"
    fast = filter(onednn.supports, ("float32", "bfloat16"))
    return f"{' and '.join(fast)} by oneDNN"


def idle_gpu() -> str:
    """Says how to use a GPU that the machine has and JAX does not; else empty."""
    visible = pathlib.Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")
    is_wanted = os.environ.get("JAX_PLATFORMS", "") != "cpu"
    if not (visible and is_wanted) or jax.default_backend() != "cpu":
        return ""
    return (
        "there is an NVIDIA GPU, but JAX runs on the CPU. Install the GPU build: "
        "make setup EXTRA=cuda12 (or pip install -e '.[cuda12]')"
    )


def keep_compilations() -> None:
    """Keeps compiled programs in the user's cache folder, so that they start at once.

    JAX_COMPILATION_CACHE_DIR chooses another folder.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    with contextlib.suppress(RuntimeError):  # Users without a home have no cache.
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def cache_folder() -> pathlib.Path:
    """Returns the cache folder of this processor.

    Homes are shared by machines with other processors, where programs compiled for
    this one would not run.
    """
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "nucseg_jax" / _processor_id()


def _processor_id() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    flags = sorted({line for line in text.splitlines() if line.startswith("flags")})
    text = platform.machine() + "".join(flags or [text])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _has_affinity() -> bool:
    return hasattr(os, "sched_getaffinity")  # Not on macOS and Windows.
