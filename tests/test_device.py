"""A device that cannot be started is told as that, by whatever needs it first."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from experiments.device import keep_compilations
from nucseg_jax import device, pretrained
from nucseg_jax.checkpoints import CheckpointError, restore_for_inference
from nucseg_jax.device import DeviceError


def test_the_devices_are_those_of_jax():
    assert device.start() == jax.devices()


@pytest.fixture(params=[AssertionError(), RuntimeError("no\n such  backend")], ids=repr)
def broken(request, monkeypatch):
    def fail():
        raise request.param

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")


@pytest.mark.parametrize(
    "use", [device.start, pretrained.choose, lambda: restore_for_inference(SMALL)]
)
@pytest.mark.usefixtures("broken")
def test_a_device_that_does_not_start_is_named(use):
    with pytest.raises(DeviceError, match="cannot start its device .*JAX_PLATFORMS="):
        use()


SMALL = pretrained.find("small")


def test_a_full_device_is_no_damaged_checkpoint(monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr("nucseg_jax.checkpoints.digest_tree", fail)
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        restore_for_inference(SMALL)
    assert not isinstance(caught.value, CheckpointError)


def test_users_without_a_home_have_no_cache(monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pathlib.Path, "home", fail)
    before = jax.config.jax_compilation_cache_dir
    keep_compilations()
    assert jax.config.jax_compilation_cache_dir == before


def test_a_program_tells_it_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.evaluate", "--checkpoint=small"],
        env={**os.environ, "JAX_PLATFORMS": "nonsense"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: JAX cannot start its device")
