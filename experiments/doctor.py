"""Prints what runs where, and whether this set-up works.

    python -m experiments.doctor

Exits with 1 if something is broken.
"""

from __future__ import annotations

import importlib
import pathlib
import platform
import shutil

from experiments import flags as shared
from experiments.versions import find_version

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "albumentations",
    "opencv-python",
    "opencv-python-headless",
    "numpy",
    "absl-py",
    "pillow",
    "scikit-image",
    "scipy",
    "tifffile",
    "imagecodecs",
    "zarr",
    "roifile",
    "matplotlib",
    "tqdm",
    "tensorboardX",
)
_CV2_WHEELS = ("opencv-python", "opencv-python-headless")


def main() -> int:
    """Prints one screen; returns 1 if a check failed."""
    print(f"python {platform.python_version()} on {platform.platform()}")
    for name in _PACKAGES:
        print(f"  {name:<24}{find_version(name) or 'MISSING'}")
    problems = [problem for check in _CHECKS for problem in check()]
    for problem in problems:
        print(f"BROKEN: {problem}")
    print("set-up: " + ("broken, see above" if problems else "works"))
    return 1 if problems else 0


def check_packages() -> list[str]:
    """Reports packages that are not installed."""
    missing = [name for name in _PACKAGES if not find_version(name)]
    return [f"{name} is not installed; run make setup" for name in missing]


def check_cv2() -> list[str]:
    """Reports a cv2 that two wheels have overwritten or one has half removed."""
    versions = {find_version(name) for name in _CV2_WHEELS}
    cure = "pip install --force-reinstall --no-deps " + " ".join(
        f"{name}=={find_version(name) or 'VERSION'}" for name in _CV2_WHEELS
    )
    if len(versions) > 1:
        return [f"opencv-python and opencv-python-headless differ; {cure}"]
    try:
        cv2 = importlib.import_module("cv2")
        print(f"cv2: {cv2.__version__} from {cv2.__file__}")
    except (ImportError, AttributeError) as error:
        return [f"cv2 cannot be used ({error}); {cure}"]
    return []


def check_device() -> list[str]:
    """Prints the device and runs one convolution on it."""
    try:
        import jax
        import jax.numpy as jnp

        from experiments.device import describe_device

        print(describe_device())
        image, kernel = jnp.ones((1, 64, 8, 8)), jnp.ones((4, 64, 3, 3))
        result = jax.lax.conv(image, kernel, (1, 1), "VALID")
        if float(result.min()) != 576.0 or float(result.max()) != 576.0:
            return ["the device computes wrongly"]
    except (ImportError, RuntimeError) as error:
        return [f"JAX cannot use its device ({error})"]
    return []


def check_shared_memory() -> list[str]:
    """Tells how much there is for loading processes, which small containers lack."""
    folder = pathlib.Path("/dev/shm")
    if folder.is_dir():
        free = shutil.disk_usage(folder).free >> 20
        few = "" if free >= 256 else "; little for --num_workers: give --shm-size=1g"
        print(f"shared memory: {free} MiB free{few}")
    return []


def check_networks() -> list[str]:
    """Reports damaged networks of the package."""
    try:
        from nucseg_jax import pretrained

        for name in pretrained.NAMES:
            print(f"network in the box: {pretrained.find(name).name}, whole")
    except (ImportError, ValueError) as error:
        return [str(error)]
    return []


_CHECKS = (check_packages, check_cv2, check_device, check_shared_memory, check_networks)


if __name__ == "__main__":
    shared.run(main)
