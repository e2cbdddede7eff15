"""Which packages are installed."""

from __future__ import annotations

import importlib.metadata


def find_version(package: str) -> str:
    """Returns the version of an installed package; "" if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
