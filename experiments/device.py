"""Tells which device the computation runs on, and whether one lies idle."""

from __future__ import annotations

import os
import pathlib
import shutil

import jax


def describe_device() -> str:
    """Returns one line: device, how many, and the JAX that drives them."""
    devices = jax.devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = (
            f"CPU, {len(os.sched_getaffinity(0))} cores" if _has_affinity() else "CPU"
        )
    line = f"device: {len(devices)} x {kind} (jax {jax.__version__})"
    return f"{line}\nWARNING: {idle_gpu()}" if idle_gpu() else line


def idle_gpu() -> str:
    """Says how to use a GPU that the machine has and JAX does not; else empty."""
    visible = pathlib.Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi")
    if not visible or jax.default_backend() != "cpu":
        return ""
    return (
        "there is an NVIDIA GPU, but JAX runs on the CPU. Install the GPU build: "
        "make setup EXTRA=cuda12 (or pip install 'nucseg-jax[cuda12]')"
    )


def _has_affinity() -> bool:
    return hasattr(os, "sched_getaffinity")  # Not on macOS and Windows.
