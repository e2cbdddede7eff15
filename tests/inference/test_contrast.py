import dataclasses

import numpy as np
import pytest

from nucseg_jax.data.images import to_rgb
from nucseg_jax.data.intensity import intensity_range
from nucseg_jax.data.planes import plane_of_array
from nucseg_jax.data.preprocessing import to_uint8
from nucseg_jax.inference.contrast import colour_reader

VALUES = np.random.default_rng(0).integers(0, 256, (16, 300, 4), np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.uint16, np.float32])
@pytest.mark.parametrize("segmented", [(0,), (2,), (0, 1, 2), (3, 0, 1)])
def test_colours_are_those_of_to_rgb_in_256_steps(dtype, segmented):
    pixels = VALUES.astype(dtype)
    plane = plane_of_array(pixels, channel=0)
    plane = dataclasses.replace(plane, segmented=segmented)
    value_range = intensity_range(plane)
    rows, columns = slice(3, 9), slice(7, 290)
    chosen = pixels[rows, columns][..., list(segmented)]
    expected = to_uint8(to_rgb(chosen, value_range=value_range))
    seen = colour_reader(plane, value_range)(rows, columns)
    assert seen.dtype == np.uint8
    np.testing.assert_array_equal(seen, expected)
