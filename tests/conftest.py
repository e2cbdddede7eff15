"""Every test runs on the CPU, with strict shapes and full float32 products."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = os.environ.get("NUCSEG_TEST_PLATFORM", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import jax
import pytest
from absl import flags

jax.config.update("jax_default_matmul_precision", "float32")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "project", derandomize=True, deadline=None, max_examples=25
)
hypothesis.settings.load_profile("project")


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(tmp_path_factory):
    """Tests that compile the same function share the result within a session."""
    folder = tmp_path_factory.mktemp("jax_cache")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(autouse=True, scope="session")
def parsed_flags():
    """grain refuses to start workers while absl's flags are unparsed."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def pytest_collection_modifyitems(items):
    """Begins with whole programs, then what compiles: no process is to end late."""
    here = pathlib.Path(__file__).parent
    slow = [here, here / "experiments", here / "training", here / "network"]
    items.sort(
        key=lambda item: (
            slow.index(item.path.parent) if item.path.parent in slow else len(slow)
        )
    )
