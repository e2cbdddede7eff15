import importlib
import sys

import pytest
from absl import flags
from absl.testing import flagsaver


@pytest.fixture
def absl_flags():
    """absl's flags; what a test defines or sets is gone after it."""
    saved = flagsaver.save_flag_values()
    yield flags.FLAGS
    flagsaver.restore_flag_values(saved)


@pytest.fixture
def load_program(absl_flags):
    """Imports a program and gives it a command line.

    What one program requires, another may not know: each is forgotten afterwards.
    """
    loaded = []

    def load(name, *arguments):
        module = importlib.import_module(f"experiments.{name}")
        loaded.append(module.__name__)
        absl_flags([name, *arguments])
        return module

    yield load
    for name in loaded:
        sys.modules.pop(name, None)
