import numpy as np
import PIL.Image
import pytest

from nucseg_jax.config import DataConfig
from nucseg_jax.data.index import Example
from nucseg_jax.inference.segmenter import Segmenter


@pytest.fixture
def make_example(tmp_path):
    """Writes an image whose red channel is what the fake network predicts."""

    def make(name, red, labels):
        pixels = np.zeros((*np.shape(red), 3), np.uint8)
        pixels[..., 0] = red
        image, truth = tmp_path / f"{name}.png", tmp_path / f"{name}_labels.png"
        PIL.Image.fromarray(pixels).save(image)
        PIL.Image.fromarray(np.asarray(labels, np.uint16)).save(truth)
        return Example(id=name, image=image, truth=(truth,), kind="labels", group=name)

    return make


@pytest.fixture
def segmenter():
    """Predicts the red channel, at the image's own size."""
    config = DataConfig(framing="crop", clahe_clip_limit=0)
    return Segmenter(lambda images: images[..., :1], config)
