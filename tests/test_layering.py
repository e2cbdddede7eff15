"""Arrows go one way: which part of the library may import which."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LIBRARY = ROOT / "nucseg_jax"

# Part -> what it may import of nucseg_jax besides itself.
ALLOWED = {
    "config": [],
    "files": [],
    "digests": [],
    "device": [],
    "data": ["config"],
    "network": ["config"],
    "checkpoints": ["config", "device", "digests", "files", "network"],
    "pretrained": ["checkpoints", "device", "files"],
    "training": [
        "checkpoints",
        "config",
        "evaluation.pixel_metrics",
        "files",
        "network",
    ],
    "inference": [
        "checkpoints",
        "config",
        "digests",
        "files",
        "network",
        "pretrained",
        "data.errors",
        "data.hue",
        "data.intensity",
        "data.planes",
        "data.preprocessing",
    ],
    "evaluation": ["config", "data", "files", "inference"],
    # The face of the library names its homes lazily.
    "__init__": ["inference.segmenter"],
}
MODULES = sorted(LIBRARY.rglob("*.py"))


def imported(path: pathlib.Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(path: pathlib.Path) -> str:
    relative = path.relative_to(LIBRARY)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_library_imports_go_one_way(path):
    part = part_of(path)
    for name in imported(path):
        if name.startswith("nucseg_jax."):
            target = name.removeprefix("nucseg_jax.")
            allowed = [part, *ALLOWED[part]]
            assert any(target == a or target.startswith(a + ".") for a in allowed), (
                f"{part} must not import {target}"
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_library_knows_no_programs_and_prints_nothing(path):
    names = imported(path)
    assert not any(name.startswith(("experiments", "tests")) for name in names)
    # grain asks absl whether flags were parsed; nothing else may know of flags.
    if path.name != "pipeline.py":
        assert not any(name.startswith("absl") for name in names)
    calls = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)
    ]
    assert not any(getattr(call.func, "id", "") == "print" for call in calls)


@pytest.mark.parametrize(
    "path", sorted((LIBRARY / "data").rglob("*.py")), ids=lambda p: p.name
)
def test_data_needs_no_jax(path):
    """Loader processes start fast and never touch the accelerator."""
    for name in imported(path):
        assert name.split(".")[0] not in ("jax", "flax", "optax", "orbax")


def test_every_part_has_its_rule():
    assert {part_of(path) for path in MODULES} == set(ALLOWED)
