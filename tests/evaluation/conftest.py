import dataclasses

import numpy as np
import PIL.Image
import pytest

from nucseg_jax.config import DataConfig, DecodingConfig
from nucseg_jax.data.index import Example
from nucseg_jax.inference.segmenter import Segmenter


@pytest.fixture
def make_example(tmp_path):
    """Writes an image whose red channel is what the fake network predicts."""

    def make(name, red, labels, **changes):
        pixels = np.zeros((*np.shape(red), 3), np.uint8)
        pixels[..., 0] = red
        image, truth = tmp_path / f"{name}.png", tmp_path / f"{name}_labels.png"
        PIL.Image.fromarray(pixels).save(image)
        PIL.Image.fromarray(np.asarray(labels, np.uint16)).save(truth)
        example = Example(name, image, (truth,), kind="labels", group=name)
        return dataclasses.replace(example, **changes)

    return make


@pytest.fixture
def segmenter():
    """Predicts the red channel, at the image's own size; its parts are nuclei."""
    config = DataConfig(framing="crop", clahe_clip_limit=0)
    decoding = DecodingConfig(method="components", min_area=0, max_hole=0)
    return Segmenter(lambda images: images[..., :1], config, decoding=decoding)
