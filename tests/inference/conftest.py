import numpy as np
import pytest

from nucseg_jax.network.unet_plus_plus import UNetPlusPlus
from tests.helpers import TINY_FEATURES, random_variables


@pytest.fixture(scope="session")
def model():
    return UNetPlusPlus(features=TINY_FEATURES)


@pytest.fixture(scope="session")
def variables(model):
    return random_variables(model)


@pytest.fixture(scope="session")
def images():
    """float32 [2, 16, 12, 3], multiples of 4."""
    return np.random.default_rng(1).random((2, 16, 12, 3), np.float32)
