"""The public face: names, docstrings and the conventions of signatures."""

import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import nucseg_jax

LIBRARY = pathlib.Path(nucseg_jax.__file__).parent
MODULES = [
    "nucseg_jax." + str(path.relative_to(LIBRARY).with_suffix("")).replace("/", ".")
    for path in sorted(LIBRARY.rglob("*.py"))
    if path.name != "__init__.py"
]


def public(module):
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") == module.__name__ and name[0] != "_":
            yield name, value


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for item, value in public(module):
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__, f"{name}.{item} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_arguments_are_typed_and_random_keys_are_called_key(name):
    for item, value in public(importlib.import_module(name)):
        if inspect.isfunction(value):
            for parameter in inspect.signature(value).parameters.values():
                assert parameter.annotation is not parameter.empty, (
                    f"{item} {parameter}"
                )
                assert parameter.name not in ("rng_key", "prng", "rngs")


def test_names_of_the_face_exist():
    for name in nucseg_jax.__all__:
        assert getattr(nucseg_jax, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nucseg_jax.nothing


def test_importing_the_library_starts_no_jax():
    code = "import sys, nucseg_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_without_weights_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="holds no folder checkpoints/ of a trained"):
        nucseg_jax.load_segmenter(tmp_path)
