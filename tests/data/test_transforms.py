import warnings
from collections import Counter
from typing import get_args

import albumentations as A
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucseg_jax.config import Augmentation
from nucseg_jax.data import transforms

# The original's augmentation; "CLAHE always" is preparation here.
ORIGINAL = [
    ("Rotate", 1.0),
    ("Flip", 1.0),
    ("GaussNoise", 0.9),
    ("HorizontalFlip", 0.6),
    (("RandomBrightnessContrast", "RandomGamma"), 0.2),
    ("VerticalFlip", 0.7),
    ("HueSaturationValue", 0.5),
]
NAMES = {
    "CLAHE",
    "Rotate",
    "Flip",
    "GaussNoise",
    "HorizontalFlip",
    "VerticalFlip",
    "HueSaturationValue",
    "RandomGamma",
    "RandomBrightnessContrast",
}
OURS = {"D4", "ColorJitter", "ToGray", "GaussianBlur"}
NAMES |= OURS
GEOMETRIC = ("Rotate", "Flip", "HorizontalFlip", "VerticalFlip", "D4")
PHOTOMETRIC = sorted(NAMES - set(GEOMETRIC))
SEEDS = range(6)


def compose(name, p=1.0):
    return A.Compose([transforms.TRANSFORMS[name](p)])


def places(height, width):
    """A ramp that tells each pixel's place, and label images that tell it too."""
    rows, columns = np.mgrid[:height, :width]
    image_u8 = np.stack([rows * 4, columns * 4, rows * 0], axis=-1).astype(np.uint8)
    return image_u8, (rows * width + columns + 1).astype(np.uint16)


def assert_aligned(image_u8, labels, width, tolerance):
    rows, columns = np.divmod(labels.astype(int) - 1, width)
    assert np.abs(image_u8[..., 0] - 4.0 * rows).max() <= tolerance
    assert np.abs(image_u8[..., 1] - 4.0 * columns).max() <= tolerance


def noisy(height=40, width=48, seed=0):
    rng = np.random.default_rng(seed)
    image_u8 = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image_u8, rng.integers(0, 900, (height, width)).astype(np.uint16)


# What there is.


def test_all_transforms_of_the_original_and_ours_exist():
    assert set(transforms.TRANSFORMS) == NAMES


def test_original_recipe_is_the_originals():
    assert list(transforms.RECIPES["original"]) == ORIGINAL


def test_every_recipe_that_may_be_named_exists():
    assert tuple(transforms.RECIPES) == get_args(Augmentation)


def test_original_recipe_is_built_with_its_probabilities():
    steps = transforms.create_augmentation("original").transforms
    assert [step.p for step in steps] == [p for _, p in ORIGINAL]
    kinds = [type(step).__name__ for step in steps]
    assert kinds[0] == "Rotate" and kinds[2:4] == ["GaussNoise", "HorizontalFlip"]
    assert kinds[5:] == ["VerticalFlip", "HueSaturationValue"]
    choices = [(type(step).__name__, step.p) for step in steps[4].transforms]
    assert choices == [("RandomBrightnessContrast", 1.0), ("RandomGamma", 1.0)]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_transforms_are_built_and_run_without_warnings(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        augmentation = compose(name)
        image_u8, labels = noisy()
        image, label_image = transforms.augment(augmentation, image_u8, labels, seed=0)
    assert augmentation.transforms[0].p == 1.0
    assert image.shape == image_u8.shape and image.dtype == np.uint8
    assert label_image.shape == labels.shape and label_image.dtype == np.uint16
    assert not np.array_equal(image, image_u8)


@pytest.mark.parametrize("recipe", sorted(transforms.RECIPES))
@pytest.mark.parametrize("crop", (0, 16))
def test_recipes_are_built_without_warnings(recipe, crop):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        augmentation = transforms.create_augmentation(recipe, crop=crop)
        image, labels = transforms.augment(augmentation, *noisy(), seed=0)
    assert image.shape[:2] == labels.shape == ((16, 16) if crop else (40, 48))


def test_no_recipe_changes_nothing():
    image_u8, labels = noisy()
    augmentation = transforms.create_augmentation("none")
    image, label_image = transforms.augment(augmentation, image_u8, labels, seed=1)
    np.testing.assert_array_equal(image, image_u8)
    np.testing.assert_array_equal(label_image, labels)


# How often.


@pytest.mark.parametrize(("name", "p"), (("HorizontalFlip", 0.6), ("Flip", 0.25)))
def test_probability_is_kept(name, p):
    augmentation = compose(name, p)
    image_u8, labels = noisy(8, 8)
    changed = [
        not np.array_equal(
            transforms.augment(augmentation, image_u8, labels, seed=seed)[0], image_u8
        )
        for seed in range(400)
    ]
    # Five standard deviations of 400 draws.
    assert abs(np.mean(changed) - p) < 5 * (p * (1 - p) / 400) ** 0.5


def test_flip_draws_each_axis_and_both_alike():
    augmentation = compose("Flip")
    _, labels = places(5, 4)
    outcomes = {
        labels[::-1].tobytes(): "rows",
        labels[:, ::-1].tobytes(): "columns",
        labels[::-1, ::-1].tobytes(): "both",
    }
    drawn = Counter(
        outcomes[
            transforms.augment(augmentation, *places(5, 4), seed=seed)[1].tobytes()
        ]
        for seed in range(300)
    )
    assert set(drawn) == {"rows", "columns", "both"}
    assert min(drawn.values()) > 60


@pytest.mark.parametrize(
    ("name", "limits"),
    (
        ("CLAHE", {"clip_limit": (1, 4), "tile_grid_size": (8, 8)}),
        ("Rotate", {"limit": (-360, 360)}),
        ("RandomGamma", {"gamma_limit": (80, 120)}),
        (
            "RandomBrightnessContrast",
            {"brightness_limit": (-0.2, 0.2), "contrast_limit": (-0.2, 0.2)},
        ),
        (
            "HueSaturationValue",
            {
                "hue_shift_limit": (-20, 20),
                "sat_shift_limit": (-30, 30),
                "val_shift_limit": (-20, 20),
            },
        ),
    ),
)
def test_ranges_are_the_defaults_of_2020(name, limits):
    (transform,) = compose(name).transforms
    assert {key: tuple(getattr(transform, key)) for key in limits} == limits


def test_rotation_takes_every_angle():
    # A bright wedge to the right of the centre; its centre of mass tells the angle.
    rows, columns = np.mgrid[-32:33, -32:33]
    wedge = ((columns > 4) & (abs(rows) < 6) & (columns < 22)).astype(np.uint16)
    image_u8 = np.zeros((65, 65, 3), np.uint8)
    augmentation = compose("Rotate")
    angles = []
    for seed in range(80):
        _, turned = transforms.augment(augmentation, image_u8, wedge, seed=seed)
        near = turned * (rows**2 + columns**2 < 23**2)
        angles.append(np.arctan2((near * rows).sum(), (near * columns).sum()))
    eighths = np.floor(np.array(angles) / (np.pi / 4)).astype(int)
    assert set(eighths) == set(range(-4, 4))


def test_noise_is_that_of_2020():
    # A variance from 10 to 50 for values of 0 to 255; fractions are cut off.
    normal = np.random.default_rng(0).normal(size=10**5)
    least, most = (np.trunc(normal * variance**0.5).std() for variance in (10, 50))
    augmentation = compose("GaussNoise")
    image_u8 = np.full((64, 64, 3), 128, np.uint8)
    labels = np.zeros((64, 64), np.uint16)
    spread = [
        transforms.augment(augmentation, image_u8, labels, seed=seed)[0].std()
        for seed in range(60)
    ]
    assert 0.98 * least < min(spread) < 1.1 * least
    assert 0.95 * most < max(spread) < 1.02 * most


# Alignment.


@pytest.mark.parametrize("name", GEOMETRIC)
@given(seed=st.integers(0, 2**31 - 1))
def test_image_and_labels_move_together(name, seed):
    image, labels = transforms.augment(compose(name), *places(64, 48), seed=seed)
    # The image is interpolated, the labels come from a nearest pixel, 4 levels apart.
    assert_aligned(image, labels, width=48, tolerance=4 if name == "Rotate" else 0)


@given(
    seed=st.integers(0, 2**31 - 1),
    shape=st.sampled_from([(64, 48), (33, 20), (20, 50), (40, 40), (9, 2), (1, 1)]),
)
def test_crop_keeps_image_and_labels_aligned(seed, shape):
    augmentation = transforms.create_augmentation("none", crop=32)
    image, labels = transforms.augment(augmentation, *places(*shape), seed=seed)
    assert image.shape == (32, 32, 3) and labels.shape == (32, 32)
    if shape == (1, 1):
        return
    assert_aligned(image, labels, width=shape[1], tolerance=0)


@given(
    seed=st.integers(0, 2**31 - 1),
    recipe=st.sampled_from(["flips", "original", "microscopy"]),
    crop=st.sampled_from([0, 40]),
)
def test_recipes_keep_bright_discs_under_their_labels(seed, recipe, crop):
    rows, columns = np.mgrid[:64, :56]
    labels = np.zeros((64, 56), np.uint16)
    for number, (y, x) in enumerate(((14, 12), (20, 40), (48, 25)), start=1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 < 90] = number * 300
    image_u8 = np.where(labels[..., None] > 0, 200, 40).repeat(3, -1).astype(np.uint8)
    augmentation = transforms.create_augmentation(recipe, crop=crop)
    image, moved = transforms.augment(augmentation, image_u8, labels, seed=seed)
    agrees = (image.mean(-1) > 120) == (moved > 0)
    assert agrees.mean() > 0.97
    assert set(np.unique(moved)) <= {0, 300, 600, 900}


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_colours_change_no_label(name):
    image_u8, labels = noisy()
    for seed in SEEDS:
        _, same = transforms.augment(compose(name), image_u8, labels, seed=seed)
        np.testing.assert_array_equal(same, labels)


@pytest.mark.parametrize("recipe", sorted(transforms.RECIPES))
@given(seed=st.integers(0, 2**31 - 1))
def test_labels_take_no_new_value(recipe, seed):
    image_u8, labels = noisy()
    labels = (labels // 300 * 21_000).astype(np.uint16)
    augmentation = transforms.create_augmentation(recipe, crop=56)
    _, moved = transforms.augment(augmentation, image_u8, labels, seed=seed)
    assert moved.dtype == np.uint16 and set(np.unique(moved)) <= {0, 21_000, 42_000}


@pytest.mark.parametrize("seed", SEEDS)
def test_rotation_mirrors_at_the_border(seed):
    image_u8 = np.full((30, 50, 3), 77, np.uint8)
    labels = np.full((30, 50), 5, np.uint16)
    image, label_image = transforms.augment(
        compose("Rotate"), image_u8, labels, seed=seed
    )
    np.testing.assert_array_equal(image, image_u8)
    np.testing.assert_array_equal(label_image, labels)


# Crops.


@pytest.mark.parametrize("seed", SEEDS)
def test_crop_of_a_large_image_is_a_window(seed):
    augmentation = transforms.create_augmentation("none", crop=16)
    _, labels = transforms.augment(augmentation, *places(40, 30), seed=seed)
    top, left = divmod(int(labels[0, 0]) - 1, 30)
    np.testing.assert_array_equal(
        labels, places(40, 30)[1][top : top + 16, left : left + 16]
    )


def test_crop_reaches_every_corner():
    augmentation = transforms.create_augmentation("none", crop=16)
    corners = {
        int(transforms.augment(augmentation, *places(18, 17), seed=seed)[1][0, 0])
        for seed in range(60)
    }
    assert corners == {1, 2, 18, 19, 35, 36}


@pytest.mark.parametrize("seed", SEEDS)
def test_crop_mirrors_a_small_image(seed):
    augmentation = transforms.create_augmentation("none", crop=16)
    _, labels = transforms.augment(augmentation, *places(10, 12), seed=seed)
    rows, columns = np.divmod(labels.astype(int) - 1, 12)
    assert set(rows.ravel()) == set(range(10))
    assert set(columns.ravel()) == set(range(12))
    # Mirrored without repeating the edge: neighbours are one apart everywhere.
    assert set(np.abs(np.diff(rows, axis=0)).ravel()) == {1}
    assert set(np.abs(np.diff(columns, axis=1)).ravel()) == {1}


@given(
    seed=st.integers(0, 2**31 - 1),
    shape=st.sampled_from([(120, 100), (64, 48), (20, 30)]),
)
def test_zoomed_crops_keep_image_and_labels_aligned(seed, shape):
    augmentation = transforms.create_augmentation("none", crop=32, zoom=2.0)
    ramp, labels = places(*shape)
    image, labels = transforms.augment(augmentation, ramp // 2, labels, seed=seed)
    assert image.shape == (32, 32, 3) and labels.shape == (32, 32)
    rows, columns = np.divmod(labels.astype(int) - 1, shape[1])
    # Values wrap around at 128; a shrunken pixel lies between two that it stands for.
    for channel, place in enumerate((rows, columns)):
        error = np.abs(image[..., channel] - 2.0 * place % 128)
        assert np.quantile(np.minimum(error, 128 - error), 0.9) <= 4


def test_zoom_shifts_no_label_against_the_image():
    augmentation = transforms.create_augmentation("none", crop=32, zoom=1.5)
    shifts = []
    for seed in range(60):
        image, labels = transforms.augment(augmentation, *places(60, 60), seed=seed)
        seen = np.divmod(labels.astype(int) - 1, 60)
        shifts.append([(image[..., i] / 4 - seen[i]).mean() for i in (0, 1)])
    # In pixels of the image. Where the side grows by half, no nearest pixel is better.
    assert np.abs(shifts).max() < 0.3
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.05


def test_zoom_draws_magnifications_on_both_sides_of_one():
    augmentation = transforms.create_augmentation("none", crop=32, zoom=2.0)
    widths = []
    for seed in range(80):
        _, labels = transforms.augment(augmentation, *places(100, 90), seed=seed)
        columns = (labels.astype(int) - 1) % 90
        widths.append(int(np.ptp(columns)) + 1)
    assert 15 <= min(widths) < 20 and 58 < max(widths) <= 64


# Randomness.


@pytest.mark.parametrize("recipe", ("flips", "original", "microscopy"))
def test_result_depends_on_nothing_but_the_seed(recipe):
    used, fresh = (transforms.create_augmentation(recipe, crop=24) for _ in "12")
    for seed in SEEDS:
        transforms.augment(used, *noisy(seed=seed), seed=99 + seed)
        first = transforms.augment(used, *noisy(), seed=seed)
        second = transforms.augment(fresh, *noisy(), seed=seed)
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])


def test_numpys_and_pythons_global_seeds_do_not_matter():
    augmentation = transforms.create_augmentation("original")
    first = transforms.augment(augmentation, *noisy(), seed=3)
    np.random.seed(0)  # noqa: NPY002
    second = transforms.augment(augmentation, *noisy(), seed=3)
    np.testing.assert_array_equal(first[0], second[0])


def test_other_seeds_give_other_results():
    augmentation = transforms.create_augmentation("original")
    results = {
        transforms.augment(augmentation, *noisy(), seed=seed)[0].tobytes()
        for seed in range(30)
    }
    assert len(results) == 30


@pytest.mark.parametrize("name", sorted(NAMES))
def test_inputs_are_left_alone(name):
    image_u8, labels = noisy()
    before = image_u8.copy(), labels.copy()
    for seed in SEEDS:
        transforms.augment(compose(name), image_u8, labels, seed=seed)
    np.testing.assert_array_equal(image_u8, before[0])
    np.testing.assert_array_equal(labels, before[1])
