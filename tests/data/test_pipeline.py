import collections
import concurrent.futures
import dataclasses
import pickle
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile

from nucseg_jax.config import DataConfig
from nucseg_jax.data import images, pipeline, preprocessing, transforms
from nucseg_jax.data.index import Example

CONFIG = DataConfig(size=16)
PLAIN = DataConfig(size=16, augmentation="none", clahe_clip_limit=0.0)
CROP = DataConfig(size=16, framing="crop", augmentation="none", clahe_clip_limit=0.0)


def take(num, examples, config=CONFIG, *, batch_size=3, seed=5, **options):
    """The first batches of a training run."""
    batches = pipeline.make_train_batches(
        examples, config, batch_size=batch_size, seed=seed, **options
    )
    try:
        return [next(batches) for _ in range(num)]
    finally:
        batches.close()


def order(batches):
    return np.concatenate([batch["index"] for batch in batches]).tolist()


def assert_same_batches(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert set(one) == set(other) == {"image_u8", "mask", "valid", "index"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture
def reads(monkeypatch):
    """The ids of all examples read, in order."""
    seen = []
    read_pair = pipeline.truth.read_pair

    def read(example):
        seen.append(example.id)
        return read_pair(example)

    monkeypatch.setattr(pipeline.truth, "read_pair", read)
    return seen


# Training batches.


def test_training_batch_holds_what_it_says(write_examples):
    for batch in take(3, write_examples(4)):
        assert {name: (a.dtype, a.shape) for name, a in batch.items()} == {
            "image_u8": (np.uint8, (3, 16, 16, 3)),
            "mask": (np.bool_, (3, 16, 16, 1)),
            "valid": (np.bool_, (3,)),
            "index": (np.int32, (3,)),
        }
        assert batch["image_u8"].max() > 128
        assert set(np.unique(batch["mask"])) == {0, 1}
        assert batch["valid"].all()


def test_rows_are_the_examples_they_name(write_examples):
    examples = write_examples(4)
    (batch,) = take(1, examples, PLAIN, batch_size=4)
    for image, index in zip(batch["image_u8"], batch["index"], strict=True):
        file = images.read_image(examples[index].image)
        expected = preprocessing.prepare_image(file, PLAIN)
        np.testing.assert_array_equal(image, expected)


def test_mask_is_the_resized_truth(write_examples):
    examples = write_examples(3)
    (batch,) = take(1, examples, PLAIN)
    for mask, index in zip(batch["mask"], batch["index"], strict=True):
        labels = images.read_label_image(examples[index].truth[0])
        expected = preprocessing.resize_labels(labels, (16, 16)) > 0
        np.testing.assert_array_equal(mask[..., 0], expected)


def test_contrast_is_evened_out_with_the_configured_limit(write_examples):
    examples = write_examples(2)
    config = DataConfig(size=16, augmentation="none", clahe_clip_limit=3.0)
    (batch,) = take(1, examples, config, batch_size=2)
    for image, index in zip(batch["image_u8"], batch["index"], strict=True):
        file = images.read_image(examples[index].image)
        expected = preprocessing.prepare_image(file, config)
        np.testing.assert_array_equal(image, expected)


def test_crops_are_windows_at_native_scale(write_examples):
    examples = write_examples(3, shape=(24, 20))
    for batch in take(3, examples, CROP):
        assert batch["image_u8"].shape == (3, 16, 16, 3)
        for image, mask, index in zip(
            batch["image_u8"], batch["mask"], batch["index"], strict=True
        ):
            file = preprocessing.to_uint8(images.read_image(examples[index].image))
            truth = images.read_mask(examples[index].truth[0])
            windows = np.lib.stride_tricks.sliding_window_view(file, (16, 16, 3))
            found = np.argwhere((windows[:, :, 0] == image).all((2, 3, 4)))
            ((top, left),) = found
            window = truth[top : top + 16, left : left + 16]
            np.testing.assert_array_equal(mask[..., 0], window)


def test_crops_of_small_images_have_the_full_size(write_examples):
    (batch,) = take(1, write_examples(3, shape=(12, 30)), CROP)
    assert batch["image_u8"].shape == (3, 16, 16, 3)


# Reproducibility.


def test_batches_are_the_same_on_every_run(write_examples):
    examples = write_examples(8)
    first = take(6, examples)
    for _ in range(2):
        assert_same_batches(first, take(6, examples))


@pytest.mark.parametrize("cache_mib", (0, 1))
def test_cache_does_not_change_batches(write_examples, cache_mib):
    examples = write_examples(5)
    config = DataConfig(size=16, cache_mib=cache_mib)
    assert_same_batches(take(6, examples), take(6, examples, config))


@pytest.mark.parametrize("num_workers", (1, 2))
def test_workers_change_nothing(write_examples, num_workers):
    examples = write_examples(8)
    alone = take(9, examples)
    assert_same_batches(
        alone[2:], take(7, examples, first_batch=2, num_workers=num_workers)
    )


@pytest.mark.parametrize("first_batch", (1, 3, 8, 11))
def test_first_batch_continues_exactly(write_examples, first_batch):
    examples = write_examples(8)
    whole = take(12, examples)
    rest = take(12 - first_batch, examples, first_batch=first_batch)
    assert_same_batches(whole[first_batch:], rest)


def test_other_seeds_give_other_batches(write_examples):
    examples = write_examples(8)
    seeds = [take(8, examples, seed=seed) for seed in range(3)]
    assert len({tuple(order(batches)) for batches in seeds}) == 3


def test_one_example_is_augmented_anew_each_time(write_examples):
    batches = take(8, write_examples(1), batch_size=2)
    rows = {image.tobytes() for batch in batches for image in batch["image_u8"]}
    assert len(rows) == 16


# Epochs.


@pytest.mark.parametrize("batch_size", (2, 4, 8))
def test_each_epoch_sees_each_example_once_in_a_new_order(write_examples, batch_size):
    batches = take(4 * 8 // batch_size, write_examples(8), PLAIN, batch_size=batch_size)
    epochs = np.reshape(order(batches), (4, 8))
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(8), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


def test_no_example_is_dropped_between_epochs(write_examples):
    seen = order(take(8, write_examples(8), PLAIN, batch_size=3))
    np.testing.assert_array_equal(np.bincount(seen), np.full(8, 3))


def test_rare_examples_come_several_times_an_epoch(write_examples):
    examples = write_examples(9)
    rare = {examples[2].id: "tissue"}
    examples = [
        dataclasses.replace(e, columns={"modality": rare.get(e.id, "cells")})
        for e in examples
    ]
    config = dataclasses.replace(PLAIN, balance_by="modality")
    indices = order(take(8, examples, config))
    counts = np.bincount(indices[:11]), np.bincount(indices[11:22])
    # Eight to one: its root, rounded, is three.
    for epoch in counts:
        assert epoch.tolist() == [1, 1, 3, 1, 1, 1, 1, 1, 1]


def test_batches_may_be_larger_than_the_data_set(write_examples):
    (batch,) = take(1, write_examples(3), PLAIN, batch_size=7)
    assert batch["valid"].all()
    assert sorted(np.bincount(batch["index"])) == [2, 2, 3]


def test_few_batches_are_read_ahead(write_examples, reads):
    examples = write_examples(1)
    config = DataConfig(size=16, augmentation="none", cache_mib=0)
    batches = pipeline.make_train_batches(examples, config, batch_size=2, seed=0)
    next(batches)
    time.sleep(0.3)
    batches.close()
    # The batch itself and at most eight more, of two examples each.
    assert 2 <= len(reads) <= 18


# Evaluation batches.


def test_evaluation_keeps_the_order_and_fills_the_last_batch(write_examples):
    examples = write_examples(5)
    batches = pipeline.make_eval_batches(examples, CONFIG, batch_size=3)
    first, last = batches
    assert first["index"].tolist() == [0, 1, 2] and first["valid"].all()
    assert last["index"].tolist() == [3, 4, -1]
    assert last["valid"].tolist() == [True, True, False]
    for name in ("image_u8", "mask"):
        assert first[name].shape == last[name].shape
        assert first[name].dtype == last[name].dtype
        assert not last[name][2].any() and last[name][1].any()
    assert last["index"].dtype == np.int32 and last["valid"].dtype == bool


def test_evaluation_without_remainder_fills_nothing(write_examples):
    batches = list(pipeline.make_eval_batches(write_examples(4), CONFIG, batch_size=2))
    assert order(batches) == [0, 1, 2, 3] and all(b["valid"].all() for b in batches)


def test_evaluation_prepares_but_does_not_augment(write_examples):
    examples = write_examples(2)
    (batch,) = pipeline.make_eval_batches(examples, CONFIG, batch_size=2)
    for image, mask, example in zip(
        batch["image_u8"], batch["mask"], examples, strict=True
    ):
        file = images.read_image(example.image)
        config = DataConfig(size=16, clahe_clip_limit=2.5)
        expected = preprocessing.prepare_image(file, config)
        np.testing.assert_array_equal(image, expected)
        labels = images.read_label_image(example.truth[0])
        expected = preprocessing.resize_labels(labels, (16, 16)) > 0
        np.testing.assert_array_equal(mask[..., 0], expected)


def test_evaluation_repeats_itself(write_examples):
    batches = pipeline.make_eval_batches(write_examples(5), CONFIG, batch_size=2)
    assert_same_batches(list(batches), list(batches))


def test_evaluation_of_crops_takes_the_centre(write_examples):
    examples = write_examples(1, shape=(24, 21))
    (batch,) = pipeline.make_eval_batches(examples, CROP, batch_size=1)
    image = preprocessing.to_uint8(images.read_image(examples[0].image))
    mask = images.read_mask(examples[0].truth[0])
    np.testing.assert_array_equal(batch["image_u8"][0], image[4:20, 2:18])
    np.testing.assert_array_equal(batch["mask"][0, ..., 0], mask[4:20, 2:18])


def test_evaluation_of_crops_mirrors_small_images(write_examples):
    examples = write_examples(1, shape=(10, 30))
    (batch,) = pipeline.make_eval_batches(examples, CROP, batch_size=1)
    image = preprocessing.to_uint8(images.read_image(examples[0].image))[:, 7:23]
    mirrored = np.concatenate([image[2::-1], image, image[:-4:-1]])
    np.testing.assert_array_equal(batch["image_u8"][0], mirrored)


# The cache.


def test_each_example_is_decoded_once(write_examples, reads):
    prepared = pipeline.PreparedExamples(write_examples(4), CONFIG)
    assert len(prepared) == 4
    samples = [prepared[index] for _ in range(3) for index in (2, 0, 3, 1)]
    assert reads == ["002", "000", "003", "001"]
    assert [sample.index for sample in samples[:4]] == [2, 0, 3, 1]
    assert samples[0] is samples[4] is samples[8]


def test_passes_of_an_evaluation_decode_once(write_examples, reads):
    batches = pipeline.make_eval_batches(write_examples(4), CONFIG, batch_size=2)
    assert_same_batches(list(batches), list(batches))
    assert sorted(reads) == ["000", "001", "002", "003"]


def test_no_cache_reads_every_time(write_examples, reads):
    config = DataConfig(size=16, cache_mib=0)
    prepared = pipeline.PreparedExamples(write_examples(2), config)
    first, second = prepared[1], prepared[1]
    assert reads == ["001", "001"]
    np.testing.assert_array_equal(first.image_u8, second.image_u8)


def test_what_two_threads_prepare_at_once_is_kept_once(write_examples, monkeypatch):
    config = DataConfig(size=16, cache_mib=1)
    prepared = pipeline.PreparedExamples(write_examples(1), config)
    meeting, prepare = threading.Barrier(2), prepared._prepare

    def prepare_together(index):
        meeting.wait(timeout=30)
        return prepare(index)

    monkeypatch.setattr(prepared, "_prepare", prepare_together)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.map(prepared.__getitem__, [0, 0])
    size = first.image_u8.nbytes + first.label_image.nbytes
    assert prepared._free_bytes == (1 << 20) - size
    assert prepared[0] is first or prepared[0] is second


def test_cache_keeps_to_its_limit(monkeypatch):
    # Each sample takes 5 x 400 x 400 bytes, so that one fits into 1 MiB.
    shape, seen = (400, 400), []

    def read(example):
        seen.append(example)
        return np.zeros((*shape, 3), np.float32), np.zeros(shape, np.int32)

    monkeypatch.setattr(pipeline.truth, "read_pair", read)
    examples = [
        Example(id=name, image=None, truth=(name,), kind="mask", group=name)
        for name in "ab"
    ]
    config = DataConfig(size=16, framing="crop", clahe_clip_limit=0, cache_mib=1)
    prepared = pipeline.PreparedExamples(examples, config)
    for index in (0, 1, 0, 1, 0):
        assert prepared[index].index == index
    assert [example.id for example in seen] == ["a", "b", "b"]


def test_augmentation_leaves_the_cache_alone(write_examples):
    prepared = pipeline.PreparedExamples(write_examples(1), CONFIG)
    before = prepared[0].image_u8.copy(), prepared[0].label_image.copy()
    augment = pipeline.Augment(CONFIG)
    for seed in range(10):
        augment.random_map(prepared[0], np.random.default_rng(seed))
    np.testing.assert_array_equal(prepared[0].image_u8, before[0])
    np.testing.assert_array_equal(prepared[0].label_image, before[1])


def test_pickling_drops_the_cache(write_examples, reads):
    prepared = pipeline.PreparedExamples(write_examples(3), CONFIG)
    empty = len(pickle.dumps(prepared))
    samples = [prepared[index] for index in range(3)]
    assert len(pickle.dumps(prepared)) == empty
    copy = pickle.loads(pickle.dumps(prepared))
    np.testing.assert_array_equal(copy[1].image_u8, samples[1].image_u8)
    assert reads == ["000", "001", "002", "001"]
    assert prepared[1] is samples[1] and copy[1] is copy[1]


# Augmentation in many threads.


def test_threads_do_not_disturb_each_other(write_examples):
    prepared = pipeline.PreparedExamples(write_examples(4, shape=(64, 64)), CONFIG)
    samples = [prepared[index] for index in range(4)]
    augment = pipeline.Augment(CONFIG)

    def run(item):
        return augment.random_map(samples[item % 4], np.random.default_rng(item))

    alone = [run(item) for item in range(200)]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(run, range(200)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.image_u8, other.image_u8)
        np.testing.assert_array_equal(one.label_image, other.label_image)


def test_threads_have_transforms_of_their_own():
    augment = pipeline.Augment(CONFIG)
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(augment._create).result()
    assert augment._create() is augment._create() is not other


def test_pickled_augmentation_does_the_same(write_examples):
    sample = pipeline.PreparedExamples(write_examples(1), CONFIG)[0]
    augment = pipeline.Augment(CONFIG)
    copy = pickle.loads(pickle.dumps(augment))
    one, other = (
        each.random_map(sample, np.random.default_rng(3)) for each in (augment, copy)
    )
    np.testing.assert_array_equal(one.image_u8, other.image_u8)
    assert not np.array_equal(one.image_u8, sample.image_u8)


def test_augmentation_is_that_of_the_recipe(write_examples):
    sample = pipeline.PreparedExamples(write_examples(1), CONFIG)[0]
    result = pipeline.Augment(CONFIG).random_map(sample, np.random.default_rng(3))
    seed = int(np.random.default_rng(3).integers(2**31))
    expected = transforms.augment(
        transforms.create_augmentation("original"),
        sample.image_u8,
        sample.label_image,
        seed=seed,
    )
    np.testing.assert_array_equal(result.image_u8, expected[0])
    np.testing.assert_array_equal(result.label_image, expected[1])


# Labels and faults.


def prepare_labels(tmp_path, labels):
    tifffile.imwrite(tmp_path / "image.tif", np.zeros(labels.shape, np.uint8))
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    example = Example(
        id="a",
        image=tmp_path / "image.tif",
        truth=(tmp_path / "labels.tif",),
        kind="labels",
        group="a",
    )
    return pipeline.PreparedExamples([example], CROP)[0].label_image


@pytest.mark.parametrize("background", (0, 3))
def test_labels_above_65535_are_renumbered(tmp_path, background):
    labels = np.array([[background, 70_000], [70_000, 2**31 - 1]], np.uint32)
    renumbered = prepare_labels(tmp_path, labels)
    assert renumbered.dtype == np.uint16
    first = int(background > 0)
    expected = [[first, first + 1], [first + 1, first + 2]]
    np.testing.assert_array_equal(renumbered, expected)


def test_labels_up_to_65535_stay(tmp_path):
    labels = np.array([[0, 65_535], [7, 400]], np.uint16)
    np.testing.assert_array_equal(prepare_labels(tmp_path, labels), labels)


def test_65535_nuclei_are_the_most(tmp_path):
    labels = np.arange(256 * 256, dtype=np.uint32).reshape(256, 256) * 2
    np.testing.assert_array_equal(prepare_labels(tmp_path, labels), labels // 2)
    message = f"{re.escape(str(tmp_path / 'labels.tif'))}: more than 65,535 nuclei"
    with pytest.raises(images.ImageError, match=message):
        prepare_labels(tmp_path, labels + 1)


def test_file_that_cannot_be_read_ends_the_iteration_by_name(write_examples):
    examples = write_examples(3)
    examples[1].image.write_bytes(b"no pixels")
    with pytest.raises(images.ImageError, match=re.escape(str(examples[1].image))):
        take(1, examples)


def test_too_little_memory_for_files_is_noticed_beforehand(write_examples, monkeypatch):
    """64 MiB, as Docker gives: what ten float targets of two processes would need."""
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(64, 0, 64 << 20))
    config = DataConfig(size=512, targets=("foreground", "distance"))
    with pytest.raises(pipeline.LoaderError, match="has 64 MiB free, 2 .* need 275:"):
        pipeline.make_train_batches(
            write_examples(1), config, batch_size=10, seed=0, num_workers=2
        )


@pytest.mark.parametrize("code, meaning", [("-9", "out of memory"), ("3", "code 3")])
def test_a_dead_loading_process_is_explained(code, meaning):
    class Broken:
        def __next__(self):
            raise RuntimeError(
                "Worker process was terminated unexpectedly with exit code "
                f"{code}. Search the logs above for the source of the crash."
            )

    with pytest.raises(pipeline.LoaderError, match=meaning):
        next(pipeline.TrainBatches(Broken()))
