"""One callable from an image of any kind to its nuclei."""

import concurrent.futures
import dataclasses
import pathlib
import weakref

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.draw

from nucseg_jax.config import (
    Config,
    DataConfig,
    DecodingConfig,
    InferenceConfig,
    ModelConfig,
)
from nucseg_jax.data import preprocessing
from nucseg_jax.data.errors import ImageError
from nucseg_jax.data.intensity import intensity_range
from nucseg_jax.data.planes import plane_of_array
from nucseg_jax.inference import preparation, tiling
from nucseg_jax.inference import segmenter as segmenter_module
from nucseg_jax.inference.contrast import colour_reader, count_values, make_contrast
from nucseg_jax.inference.predictor import make_predict_fn
from nucseg_jax.inference.segmenter import Segmenter, load_segmenter
from nucseg_jax.inference.streams import Band
from tests.helpers import disc_image

PLAIN = {"clahe_clip_limit": 0.0}
# Every pixel above one half is kept.
EVERY_PIXEL = DecodingConfig(method="components", min_area=0, max_hole=0)


def discs(height, width, *, seed):
    """Bright discs apart from each other, uint8 [H, W]."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.uint8)
    for row in range(15, height, 30):
        for column in range(15, width, 30):
            centre = np.array([row, column]) + rng.integers(-3, 4, 2)
            radius = rng.integers(4, 9)
            image[skimage.draw.disk(centre, radius, shape=image.shape)] = 255
    return image


class RedNetwork:
    """Predicts the red channel and keeps what it was given."""

    def __init__(self):
        self.seen = []

    def __call__(self, images, interior=None):
        self.seen.append(np.array(images))
        red = images[..., :1]
        return red if interior is None else interior.cut(red)


@pytest.fixture
def network():
    return RedNetwork()


@pytest.fixture
def segment(network):
    return Segmenter(network, DataConfig(framing="crop", **PLAIN), decoding=EVERY_PIXEL)


@pytest.fixture(scope="module")
def tiny_segmenter(model, variables):
    predict_fn = make_predict_fn(model, variables)
    return Segmenter(
        predict_fn, DataConfig(framing="crop"), decoding=EVERY_PIXEL, depth=model.depth
    )


BITS = np.random.default_rng(0).random((9, 14)) < 0.5
GRAY = {
    "bool": BITS,
    "uint8": np.uint8(255) * BITS,
    "uint16": np.where(BITS, np.uint16(4000), np.uint16(90)),
    "int16": np.where(BITS, np.int16(500), np.int16(-30)),
    "int32": np.where(BITS, np.int32(1 << 20), np.int32(3)),
    "int64": np.where(BITS, np.int64(1 << 40), np.int64(0)),
    "float16": BITS.astype(np.float16),
    "float32": BITS.astype(np.float32),
    "float64": np.where(BITS, 731.5, -20.25),
}


@pytest.mark.parametrize("dtype", GRAY)
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_arrays_of_any_kind_give_the_same_nuclei(segment, dtype, channels):
    gray = GRAY[dtype]
    image = gray if channels == 0 else np.repeat(gray[..., None], channels, axis=-1)
    result = segment(image)
    np.testing.assert_array_equal(result.probs[..., 0], BITS)
    np.testing.assert_array_equal(result.labels > 0, BITS)
    assert result.probs.dtype == np.float32


def test_colours_keep_their_order(network, segment):
    image = np.zeros((4, 4, 3), np.uint8)
    image[...] = (255, 51, 0)
    segment(image)
    np.testing.assert_allclose(network.seen[0][0, 0, 0], [1, 0.2, 0])


@pytest.mark.parametrize("shape", [(4,), (2, 4, 4, 3), (0, 4), (4, 4, 0)])
def test_arrays_of_other_shapes_are_refused(segment, shape):
    with pytest.raises(ImageError, match=r"expected \[H, W\]"):
        segment(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (20, 33), (64, 64), (65, 130)])
def test_crop_framing_keeps_the_scale(network, size):
    image = np.random.default_rng(0).random((*size, 3), np.float32)
    segment = Segmenter(network, DataConfig(framing="crop", **PLAIN))
    probs = segment.predict(image)
    (seen,) = network.seen
    assert seen.dtype == np.float32
    # Sizes are rounded up to a common step, so that few shapes are compiled.
    assert seen.shape == (1, *(-(-n // 64) * 64 for n in size), 3)
    expected = np.round(image * 255) / 255
    np.testing.assert_allclose(seen[0, : size[0], : size[1]], expected, atol=1e-6)
    assert probs.shape == (*size, 1)
    np.testing.assert_allclose(probs[..., 0], expected[..., 0], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (20, 33), (32, 32), (100, 40)])
def test_resize_framing_shows_the_network_one_square_as_in_training(network, size):
    image = np.random.default_rng(0).random((*size, 3), np.float32)
    segment = Segmenter(network, DataConfig(framing="resize", size=32, **PLAIN))
    probs = segment.predict(image)
    config = DataConfig(size=32, clahe_clip_limit=0)
    expected = preprocessing.prepare_image(image, config)
    np.testing.assert_allclose(network.seen[0][0] * 255, expected, atol=1e-4)
    assert probs.shape == (*size, 1)
    assert probs.dtype == np.float32


@pytest.mark.parametrize("place", [np.s_[10:20], np.s_[:, 60:70]], ids=str)
def test_resize_framing_brings_results_back_to_their_place(network, place):
    image = np.zeros((40, 80, 3), np.float32)
    image[place] = 1
    segment = Segmenter(network, DataConfig(framing="resize", size=16, **PLAIN))
    found = segment.predict(image)[..., 0] >= 0.5
    np.testing.assert_array_equal(found, image[..., 0] >= 0.5)


@pytest.mark.parametrize("framing", ["crop", "resize"])
def test_images_are_equalized_as_in_training(network, framing):
    gray, _ = disc_image(32, seed=0)
    image = np.repeat(gray[..., None], 3, axis=-1)
    config = DataConfig(framing=framing, size=32, clahe_clip_limit=2.5)
    Segmenter(network, config)(image)
    expected = preprocessing.equalize(image, clip_limit=2.5)
    np.testing.assert_allclose(network.seen[0][0, :32, :32] * 255, expected, atol=1e-4)
    assert (expected != image).mean() > 0.5


def test_results_come_in_the_size_asked_for(segment):
    image = np.zeros((8, 12, 3), np.float32)
    image[:, 6:] = 0.8
    probs = segment.predict(image, size=(4, 20))
    assert probs.shape == (4, 20, 1)
    np.testing.assert_allclose(probs[:, [0, -1], 0], [[0, 0.8]] * 4, atol=1e-6)


def test_every_target_is_kept():
    config = DataConfig(framing="crop", **PLAIN)
    image = np.random.default_rng(0).random((9, 11, 3), np.float32)
    for size in (None, (5, 6)):
        probs = Segmenter(lambda images: images[..., :2], config).predict(
            image, size=size
        )
        assert probs.shape == (*(size or (9, 11)), 2)


def check_consistent(result, shape, threshold):
    probs, labels, table = result.probs[..., 0], result.labels, result.measurements
    assert probs.shape == labels.shape == shape
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels > 0, probs >= threshold)
    ids = np.unique(labels[labels > 0])
    np.testing.assert_array_equal(ids, np.arange(1, len(ids) + 1))
    assert {len(column) for column in table.values()} == {len(ids)}
    np.testing.assert_array_equal(table["id"], ids)
    np.testing.assert_array_equal(table["area"], np.bincount(labels.ravel())[1:])
    return len(ids)


@pytest.mark.parametrize("threshold", [0.12, 0.5])  # Noise lies around .12.
def test_labels_probabilities_and_measurements_agree(network, threshold):
    image, labels = disc_image(48, seed=1)
    config = DataConfig(framing="crop", **PLAIN)
    decoding = dataclasses.replace(EVERY_PIXEL, threshold=threshold)
    result = Segmenter(network, config, decoding=decoding)(image)
    assert check_consistent(result, (48, 48), threshold) >= 1
    if threshold == 0.5:
        np.testing.assert_array_equal(result.labels > 0, labels > 0)


def test_a_trained_network_gives_consistent_results(tiny_segmenter):
    image, _ = disc_image(40, seed=2)
    result = tiny_segmenter(image[:, :33])
    check_consistent(result, (40, 33), 0.5)


def test_an_image_without_nuclei_gives_an_empty_table(segment):
    result = segment(np.zeros((10, 10), np.uint8))
    assert check_consistent(result, (10, 10), 0.5) == 0


def test_threads_share_a_segmenter(tiny_segmenter):
    images = [disc_image(40, seed=seed)[0] for seed in range(12)]
    alone = [tiny_segmenter.predict(to_float(image)) for image in images]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(tiny_segmenter.predict, map(to_float, images)))
    np.testing.assert_array_equal(together, alone)
    assert len({probs.tobytes() for probs in alone}) == 12


def to_float(gray):
    return np.repeat(gray[..., None], 3, axis=-1).astype(np.float32) / 255


@pytest.mark.parametrize(
    ("mode", "fast_head", "head"),
    [("accurate", 1, None), ("fast", 1, 1), ("fast", 2, 2), ("fast", 0, 2)],
)
def test_load_segmenter_uses_what_the_checkpoint_holds(
    monkeypatch, model, variables, mode, fast_head, head
):
    config = Config(
        data=DataConfig(framing="resize", size=16, **PLAIN),
        model=ModelConfig(features=model.features),
        inference=InferenceConfig(fast_head=fast_head),
        decoding=DecodingConfig(min_probability=0.8),
    )
    folders = []

    def restore(folder, mode):
        folders.append(folder)
        return model, variables, config

    monkeypatch.setattr(segmenter_module, "restore_for_inference", restore)
    segment = load_segmenter("runs/some", mode=mode, threshold=0.25)
    # A threshold of one's own is the only one.
    assert segment.decoding == DecodingConfig(threshold=0.25, mode=mode)
    assert load_segmenter("runs/some").decoding == config.decoding
    assert folders == 2 * [pathlib.Path("runs/some")]
    image = np.random.default_rng(0).random((16, 16, 3), np.float32)
    image = np.round(image * 255) / np.float32(255)
    expected = make_predict_fn(model, variables, mode, head=head)(image[None])[0]
    np.testing.assert_allclose(segment.predict(image), expected, atol=1e-6)


SCENE = discs(300, 350, seed=4)


@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize("shape", [(300, 350), (64, 350), (301, 65)])
@pytest.mark.parametrize("options", [{}, {"mode": "fast", "head": 1}, {"tta": 8}])
def test_tiles_equal_the_whole(model, variables, tile, shape, options):
    """Everywhere, not only away from where tiles meet."""
    predict_fn = make_predict_fn(model, variables, **options)
    config = DataConfig(framing="crop", **PLAIN)
    image = np.random.default_rng(0).random((*shape, 3), np.float32)
    whole = Segmenter(predict_fn, config, depth=model.depth).predict(image)
    tiled = Segmenter(predict_fn, config, depth=model.depth, tile=tile).predict(image)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


NETWORK_OF_REGIONS = DataConfig(framing="crop", normalization="stretch", **PLAIN)


def regions_of(shape, side):
    for top in range(0, shape[0], side):
        for left in range(0, shape[1], side):
            yield (
                slice(top, min(top + side, shape[0])),
                slice(left, min(left + side, shape[1])),
            )


@pytest.mark.parametrize("scale", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("shape", [(300, 350), (700, 90)])
def test_regions_equal_the_whole(model, variables, scale, shape):
    """Predicted with tiles elsewhere, and alike in every region."""
    rng = np.random.default_rng(0)
    plane = plane_of(rng.integers(90, 4000, shape, np.uint16))
    predict_fn = make_predict_fn(model, variables)
    segment = Segmenter(predict_fn, NETWORK_OF_REGIONS, depth=model.depth, tile=128)
    items = segment.stream(plane, scale=scale)
    bands = [item.probs for item in items if isinstance(item, Band)]
    whole = np.concatenate(bands)
    assert whole.std() > 0.01
    before = predict_fn._cache_size()
    contrast = contrast_of(plane)
    for rows, columns in regions_of(shape, 90):
        probs = segment.predict_region(
            plane, rows, columns, contrast, longest=90, scale=scale
        )
        # Interpolated gray values that lie between two steps are rounded by a hair.
        tolerance = 1e-5 if scale == 1 else 5e-4
        np.testing.assert_allclose(probs, whole[rows, columns], atol=tolerance)
    assert predict_fn._cache_size() <= before + 1


def plane_of(image):
    return plane_of_array(image)


def contrast_of(plane):
    """Of the whole, counted in parts."""
    value_range = intensity_range(plane)
    look = colour_reader(plane, value_range)
    parts = [count_values(look, *part) for part in regions_of(plane.shape[:2], 70)]
    return make_contrast(value_range, sum(parts), NETWORK_OF_REGIONS.normalization)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (DataConfig(framing="crop"), "its CLAHE needs the whole image"),
        (DataConfig(framing="resize", **PLAIN), "it resizes whole images"),
    ],
)
def test_networks_that_need_the_whole_image_predict_no_regions(config, reason):
    with pytest.raises(ImageError, match=f"cannot be divided.*{reason}. Take one"):
        Segmenter(RedNetwork(), config).check_regions(plane_of(SCENE))


def test_only_one_shape_is_compiled_for_a_large_image(model, variables):
    predict_fn = make_predict_fn(model, variables)
    segment = Segmenter(
        predict_fn, DataConfig(framing="crop", **PLAIN), depth=model.depth, tile=64
    )
    segment.predict(np.zeros((333, 217, 3), np.float32))
    assert predict_fn._cache_size() == 1


@pytest.mark.parametrize("scale", [0.5, 1, 2])
def test_one_row_of_tiles_is_in_memory(network, monkeypatch, scale):
    """When the next one is made, nobody holds the one before."""
    rows = []

    def blend(*args):
        assert not any(row() is not None for row in rows)
        row = tiling_blend(*args)
        rows.append(weakref.ref(row))
        return row

    tiling_blend = tiling._blend_row
    monkeypatch.setattr(tiling, "_blend_row", blend)
    monkeypatch.setattr(segmenter_module, "_CORE", (40, 200))
    monkeypatch.setattr(segmenter_module, "_HALO", 8)
    config = DataConfig(framing="crop", **PLAIN)
    segment = Segmenter(network, config, decoding=EVERY_PIXEL, depth=2, tile=64)
    for _ in segment.stream(plane_of(SCENE), scale=scale):
        pass
    assert len(rows) > 2


def test_a_streamed_image_has_the_nuclei_of_the_whole(network, monkeypatch):
    config = DataConfig(framing="crop", **PLAIN)
    whole = Segmenter(network, config, decoding=EVERY_PIXEL)(SCENE)
    monkeypatch.setattr(segmenter_module, "_CORE", (90, 130))
    monkeypatch.setattr(segmenter_module, "_HALO", 40)
    segment = Segmenter(network, config, decoding=EVERY_PIXEL, depth=2, tile=128)
    streamed = segment(SCENE)
    np.testing.assert_array_equal(streamed.labels > 0, whole.labels > 0)
    assert streamed.labels.max() == whole.labels.max() > 20
    for name in ("area", "y", "x", "solidity", "touches_border"):
        order = np.lexsort((whole.measurements["x"], whole.measurements["y"]))
        order_2 = np.lexsort((streamed.measurements["x"], streamed.measurements["y"]))
        np.testing.assert_allclose(
            streamed.measurements[name][order_2], whole.measurements[name][order]
        )


def test_contrast_is_that_of_the_whole_image_in_every_tile(network):
    """A dark corner stays dark: no tile is stretched by itself."""
    config = DataConfig(framing="crop", normalization="stretch", **PLAIN)
    image = np.full((256, 256), 100, np.uint8)
    image[:128, :128] = 20
    image[200:, 200:] = 250
    segment = Segmenter(network, config, depth=2, tile=128)
    probs = segment(image).probs[..., 0]
    assert probs[:100, :100].max() == 0 and probs[210:, 210:].min() == 1
    np.testing.assert_allclose(probs[150, 150], 80 / 230, atol=0.01)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_another_magnification_is_brought_to_that_of_training_and_back(network, scale):
    config = DataConfig(framing="crop", **PLAIN)
    segment = Segmenter(network, config, depth=2)
    result = segment(SCENE, scale=scale)
    seen = network.seen[-1].shape[1:3]
    assert seen == tuple(-(-round(n * scale) // 64) * 64 for n in SCENE.shape)
    assert result.labels.shape == SCENE.shape
    truth = SCENE > 127
    agreement = np.mean((result.labels > 0) == truth)
    assert agreement > 0.98


@pytest.mark.parametrize(
    ("trained", "pixel_size", "scale"),
    [(0.0, 0.5, 1), (0.5, None, 1), (0.5, 0.25, 0.5), (0.5, 1.0, 2), (0.5, 0.52, 1)],
)
def test_scale_follows_the_pixel_sizes_where_both_are_known(
    network, trained, pixel_size, scale
):
    config = DataConfig(framing="crop", pixel_size=trained, **PLAIN)
    assert Segmenter(network, config).choose_scale(pixel_size) == scale


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_one_of_many_channels(network, segment, channels):
    """Two may be two stains, or gray with transparency: that is asked, not guessed."""
    image = np.zeros((20, 20, channels), np.uint8)
    image[5:9, 5:9, 1] = 255
    with pytest.raises(ImageError, match=rf"has {channels} channels; say.*channel=0"):
        segment(image)
    result = segment(image, channel=1)
    assert result.labels.max() == 1
    assert list(result.measurements["intensity_mean_1"]) == [255]
    with pytest.raises(ImageError, match=f"has no channel {channels}"):
        segment(image, channel=channels)


def test_micrometres(segment):
    image = np.zeros((20, 20), np.uint8)
    image[5:9, 5:10] = 255
    table = segment(image, pixel_size=0.5).measurements
    assert table["area"][0] == 5 and table["unit"][0] == "um"


def test_networks_that_need_the_whole_image_say_so(network, monkeypatch):
    monkeypatch.setattr(preparation, "MAX_PIXELS", 1000)
    for config in (DataConfig(framing="crop"), DataConfig(framing="resize", size=32)):
        with pytest.raises(ImageError, match="40 x 40 pixels are too many"):
            Segmenter(network, config)(np.zeros((40, 40), np.uint8))


def tell_of(segment, image, **options):
    """What is told of the tiles of an array that is streamed."""
    told = []
    plane = plane_of_array(image)
    bands = segment.stream(
        plane, tell_tiles=lambda *numbers: told.append(numbers), **options
    )
    assert sum(len(b.labels) for b in bands if isinstance(b, Band)) == len(image)
    return told


def test_many_tiles_have_a_size_of_their_own(network):
    """They are not rounded to 64 pixels, for what tiles share is computed twice."""
    config = DataConfig(framing="crop", **PLAIN)
    segment = Segmenter(network, config, depth=2, tile=64)
    assert segment.predict(np.zeros((970, 970, 3), np.float32)).shape == (970, 970, 1)
    # 17 tiles of 62 pixels that share 4 of them cover 990, and of 60 only 956; what
    # lies around, 6 pixels on each side, is read, too.
    assert {images.shape for images in network.seen} == {(1, 74, 74, 3)}
    assert len(network.seen) == 17**2


@pytest.mark.parametrize("scale", [0.5, 1, 1.7])
def test_each_tile_that_is_predicted_is_told(network, scale):
    config = DataConfig(framing="crop", **PLAIN)
    segment = Segmenter(network, config, decoding=EVERY_PIXEL, depth=2, tile=64)
    told = tell_of(segment, SCENE, scale=scale)
    total = len(network.seen)
    assert total > 4
    assert told == [(done, total) for done in range(total + 1)]


def test_a_resized_image_is_one_tile(network):
    config = DataConfig(framing="resize", size=32, **PLAIN)
    assert tell_of(Segmenter(network, config), SCENE) == [(0, 1), (1, 1)]


@pytest.mark.parametrize("size", [16, 30, 65])
def test_resized_squares_of_any_size_are_one_tile(network, size):
    config = DataConfig(framing="resize", size=size, **PLAIN)
    segment = Segmenter(network, config, depth=5, tile=64)
    assert segment.predict(np.zeros((40, 50, 3), np.float32)).shape == (40, 50, 1)
    assert network.seen[0].shape == (1, *[-(-size // 16) * 16] * 2, 3)


@pytest.mark.parametrize("tile", [100, 0, -64])
def test_a_tile_that_is_no_multiple_is_refused(tile):
    with pytest.raises(
        ValueError, match=f"tile is {tile}; it must be a positive multiple of 64"
    ):
        Segmenter(lambda image: image, DataConfig(framing="crop"), tile=tile)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-9, 1e9, np.nan, np.inf])
def test_a_scale_that_cannot_be_is_an_error_that_names_the_image(segment, scale):
    with pytest.raises(ImageError, match="the image: scale is .*between 0.01 and 100"):
        segment(SCENE, scale=scale)


def test_a_scale_is_refused_where_whole_images_are_resized(network):
    """Sizes of nuclei would be taken for others, and nothing else would change."""
    segment = Segmenter(network, DataConfig(framing="resize", size=32, **PLAIN))
    with pytest.raises(ImageError, match="the image: .*a scale of 2 would change noth"):
        segment(SCENE, scale=2.0)


def test_a_known_pixel_size_gives_the_scale(network):
    config = DataConfig(framing="crop", pixel_size=0.5, **PLAIN)
    segment = Segmenter(network, config, decoding=EVERY_PIXEL)
    image = discs(60, 60, seed=0)
    # Sides are filled up to multiples of 64.
    for pixels, side in ((1.0, 128), (0.5, 64), (None, 64)):
        segment(image, pixel_size=pixels)
        assert network.seen[-1].shape[1] == side
    segment(image, pixel_size=1.0, scale=1.0)
    assert network.seen[-1].shape[1] == 64


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (np.full((9, 9, 1), 200, np.uint8), "are uint8 up to 200; expected float32"),
        (np.full((9, 9, 1), 200, np.float32), "are float32 up to 200; expected"),
        (np.zeros((9, 9), np.float32), r"shape \(9, 9\); expected \[H, W, 1\]"),
        (np.zeros((9, 9, 2), np.float32), r"shape \(9, 9, 2\); expected \[H, W, 1"),
    ],
)
def test_what_are_no_probabilities_is_not_decoded(segment, probs, message):
    with pytest.raises(ValueError, match=message):
        segment.decode(probs)


@pytest.mark.parametrize("pixel_size", [0.0, -0.5, np.nan, np.inf])
def test_lengths_are_never_measured_by_a_pixel_without_size(segment, pixel_size):
    with pytest.raises(ValueError, match="pixel_size is .*; it must be above 0"):
        segment(SCENE, pixel_size=pixel_size)


def test_streams_see_one_hue_in_gray(segment):
    """As arrays do, and files that programs read."""
    pixels = np.zeros((40, 50, 3), np.uint8)
    pixels[8:20, 10:24, 2] = 200
    plane = plane_of_array(pixels)
    bands = [item for item in segment.stream(plane) if isinstance(item, Band)]
    labels = np.concatenate([band.labels for band in bands])
    np.testing.assert_array_equal(labels > 0, pixels[..., 2] > 0)
    np.testing.assert_array_equal(labels, segment(pixels).labels)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((9, 9, 3), np.uint8), r"is uint8 \(9, 9, 3\); expected floats"),
        (np.zeros((9, 9), np.float32), r"is float32 \(9, 9\)"),
        (np.zeros((9, 9, 1), np.float32), r"is float32 \(9, 9, 1\)"),
        (np.zeros((0, 9, 3), np.float32), r"is float32 \(0, 9, 3\)"),
        (np.full((9, 9, 3), 1.3), "has values from 1.3 to 1.3; expected floats"),
        (np.full((9, 9, 3), -0.1), "has values from -0.1"),
        (np.full((9, 9, 3), np.nan), "has values from nan"),
    ],
    ids=str,
)
def test_probabilities_are_of_prepared_images_alone(segment, image, message):
    """Values beyond would wrap around at 256 without a word."""
    with pytest.raises(ImageError, match=f"the image: {message}"):
        segment.predict(image)


def test_rounding_beyond_the_ends_is_no_fault(segment):
    image = np.linspace(-1e-6, 1 + 1e-6, 27, dtype=np.float32).reshape(3, 3, 3)
    inside = segment.predict(image.clip(0, 1))
    np.testing.assert_array_equal(segment.predict(image), inside)


def test_masked_arrays_are_refused(segment):
    with pytest.raises(ImageError, match="is a masked array; fill it first"):
        segment(np.ma.masked_less(np.ones((20, 20)), 0.5))


def test_floats_that_only_jax_knows_are_numbers(segment):
    values = np.zeros((20, 20), np.float32)
    values[4:12, 4:12] = 0.75
    labels = segment(jnp.asarray(values, jnp.bfloat16)).labels
    np.testing.assert_array_equal(labels, segment(values).labels)
    assert labels.any()


@pytest.mark.parametrize("channel", [True, 5, -1, 0.5])
def test_channels_that_do_not_exist_are_refused(segment, channel):
    with pytest.raises(ImageError, match=f"has no channel {channel}; it has 4"):
        segment(np.zeros((20, 20, 4)), channel=channel)


@pytest.mark.parametrize("dtype", [complex, object, str, "M8[s]"])
def test_values_that_are_no_brightness_are_refused(segment, dtype):
    """Of complex numbers NumPy would drop a half, with a warning alone."""
    with pytest.raises(ImageError, match="the image: values .* not intensities"):
        segment(np.zeros((20, 20), dtype))


@pytest.mark.parametrize("side", [64, 200, 512, 1400])
def test_a_network_that_resizes_counts_alike_at_any_size(side):
    """Sizes in the decoding are pixels as it saw them, also of debris: 2 × 2 there."""
    small = np.zeros((64, 64), np.float32)
    small[8:20, 8:20] = small[40:54, 30:44] = 1
    small[30:32, 50:52] = small[4:6, 40:42] = 1
    config = DataConfig(framing="resize", size=64, clahe_clip_limit=0)
    segmenter = Segmenter(lambda images, interior=None: images[..., :1], config)
    image = cv2.resize(small, (side, side), interpolation=cv2.INTER_NEAREST)
    found = segmenter(image)
    assert found.labels.max() == 2
    # Large ones are not decoded in windows, at whose ends nuclei could be cut.
    np.testing.assert_array_equal(found.labels, segmenter.decode(found.probs))
