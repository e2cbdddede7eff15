"""Examples -> batches, by grain.

What a batch holds depends on nothing but the seed and the batch's number: neither on
the number of workers nor on where the iteration started. The position to save is
therefore that number alone, and a run may be resumed with other workers.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import cv2
import grain
import numpy as np
from absl import flags

from nucseg_jax.config import DataConfig
from nucseg_jax.data import handover, images, preprocessing, transforms, truth
from nucseg_jax.data.handover import LoaderError
from nucseg_jax.data.index import Example
from nucseg_jax.data.sampling import count_repeats
from nucseg_jax.data.targets import choose_dtype, make_targets

# Batches are read ahead in each process. By default grain would hold 500 of them:
# 5 GiB of ten images at 256 x 256. More threads than these wait for Python's lock.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
_WORKER_READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)


_keeping = threading.Lock()


class Batch(TypedDict):
    """Arrays of B examples, in few bytes: the device makes floats of them.

    image_u8: uint8 [B, H, W, 3].
    mask: [B, H, W, T], one channel a target: bool, or float32 where one is a distance.
    valid: bool [B], False for the rows that fill up a last batch.
    index: int32 [B], position in the list of examples; -1 where not valid.
    """

    image_u8: np.ndarray
    mask: np.ndarray
    valid: np.ndarray
    index: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sample:
    """One prepared example: uint8 [H, W, 3], and labels uint16 [H, W]."""

    image_u8: np.ndarray
    label_image: np.ndarray
    index: int


class PreparedExamples:
    """Random access to prepared examples, decoded once as far as memory allows.

    Everything that is not random (decoding, resizing, CLAHE) happens here. Each
    process keeps up to `config.cache_mib` of the results.
    """

    def __init__(self, examples: Sequence[Example], config: DataConfig):
        self._examples = list(examples)
        self._config = config
        self._cache: dict[int, Sample] = {}
        self._free_bytes = config.cache_mib << 20

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Sample:
        sample = self._cache.get(index)
        if sample is None:
            sample = self._prepare(index)
            self._keep(sample)
        return sample

    def __getstate__(self) -> dict[str, Any]:
        # A worker starts with an empty cache instead of a pickled copy of ours.
        free_bytes = self._config.cache_mib << 20
        return self.__dict__ | {"_cache": {}, "_free_bytes": free_bytes}

    def _prepare(self, index: int) -> Sample:
        image, label_image = truth.read_pair(self._examples[index])
        image_u8 = preprocessing.prepare_image(image, self._config)
        label_image = preprocessing.resize_labels(label_image, image_u8.shape[:2])
        name = str(self._examples[index].truth[0])
        return Sample(image_u8, _to_uint16(label_image, name), index)

    def _keep(self, sample: Sample) -> None:
        size = sample.image_u8.nbytes + sample.label_image.nbytes
        with _keeping:  # Two threads may have prepared the same example.
            if size <= self._free_bytes and sample.index not in self._cache:
                self._cache[sample.index] = sample
                self._free_bytes -= size


class _Epochs:
    """Endless random access: each epoch has every example, shuffled anew.

    grain's own shuffle looks for the place of each example anew, which takes 0.7 ms
    among 39 examples, as long as a quarter of the original's augmentation.
    """

    def __init__(self, prepared: PreparedExamples, repeats: Sequence[int], seed: int):
        self._prepared = prepared
        self._epoch = np.repeat(np.arange(len(prepared)), repeats)
        self._seed = seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Sample:
        epoch, place = divmod(index, len(self._epoch))
        order = _shuffled(len(self._epoch), self._seed, epoch)
        return self._prepared[int(self._epoch[order[place]])]


@functools.lru_cache(maxsize=8)
def _shuffled(number: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(number)


class Augment(grain.transforms.RandomMap):
    """Applies the configured augmentation, seeded by the item that it is applied to.

    albumentations keeps its random state in the transform, and grain reads with many
    threads: each thread has a transform of its own.
    """

    def __init__(self, config: DataConfig):
        self._config = config
        self._local = threading.local()
        self._create()

    def random_map(self, element: Sample, rng: np.random.Generator) -> Sample:
        """Returns the augmented sample."""
        image_u8, label_image = transforms.augment(
            self._create(),
            element.image_u8,
            element.label_image,
            seed=int(rng.integers(2**31)),
        )
        return Sample(image_u8, label_image, element.index)

    def _create(self):
        if not hasattr(self._local, "augmentation"):
            crop = 0 if self._config.resizes else self._config.size
            self._local.augmentation = transforms.create_augmentation(
                self._config.augmentation, crop=crop, zoom=self._config.zoom
            )
        return self._local.augmentation

    def __getstate__(self) -> dict[str, Any]:
        return {"_config": self._config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_config"])


class TrainBatches(Iterator[Batch]):
    """Endless training batches; close them to end the loading processes."""

    def __init__(
        self,
        batches: grain.DatasetIterator,
        folder: tempfile.TemporaryDirectory | None = None,
    ):
        self._batches = batches
        self._folder = folder

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          LoaderError: If a loading process died.
        """
        try:
            return next(self._batches)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise LoaderError(
                f"a loading process died ({_cause(str(error))}). Start again to go on "
                "from the last checkpoint; lower --num_workers or --cache_mib if "
                "memory is short"
            ) from error

    def close(self) -> None:
        """Ends the loading processes and removes their files."""
        self._batches.close()
        if self._folder:
            self._folder.cleanup()


def _cause(error: str) -> str:
    code = error.partition("exit code ")[2].split(".")[0]
    if code != "-9":
        return error
    return "exit code -9: killed, as systems do that run out of memory"


def make_train_batches(
    examples: Sequence[Example],
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    first_batch: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> TrainBatches:
    """Makes the endless row of training batches.

    Every epoch shuffles anew; no example is dropped between epochs. Close the
    iterator to end the workers.

    Args:
      examples: The training examples.
      config: Framing, preparation and augmentation.
      batch_size: Examples a batch.
      seed: Governs order and augmentation.
      num_workers: Processes that prepare batches; 0 = threads of this process.
      first_batch: Number of the batch to begin with.
      shard: (k, n): rows k, k + n, ... of each batch alone, as process k of n.

    Returns:
      Iterator over `Batch`, all rows valid.

    Raises:
      LoaderError: If memory has no room for the files of so many loading processes.
    """
    epochs = _Epochs(
        PreparedExamples(examples, config),
        count_repeats(examples, config.balance_by),
        seed,
    )
    number, count = shard
    rows = batch_size // count
    batches = (
        grain.MapDataset.source(epochs)
        .seed(seed)
        .random_map(Augment(config))[number::count]
        .batch(rows, batch_fn=_Stack(config.targets, rows))
    )
    batches = batches[first_batch:]
    if num_workers:
        handover.check_room(_count_bytes(config, rows), num_workers)
        return _load_in_processes(batches, num_workers)
    return TrainBatches(iter(batches.to_iter_dataset(_READ_OPTIONS)))


def make_eval_batches(
    examples: Sequence[Example], config: DataConfig, *, batch_size: int
) -> grain.IterDataset:
    """Makes one pass over examples in their order, the last batch filled up.

    With framing "crop" the centre of each image is taken, so that all batches have
    one shape.

    Returns:
      Iterable of `Batch`: each iteration is one pass.
    """
    return (
        grain.MapDataset.source(PreparedExamples(examples, config))
        .map(_Centre(config.size))
        .batch(batch_size, batch_fn=_Stack(config.targets, batch_size))
        .to_iter_dataset(_READ_OPTIONS)
    )


def _count_bytes(config: DataConfig, rows: int) -> int:
    pixel = 3 + len(config.targets) * choose_dtype(config.targets).itemsize
    return rows * config.size**2 * pixel


def _load_in_processes(batches: grain.MapDataset, num_workers: int) -> TrainBatches:
    # grain hands absl's flags to its workers and refuses unparsed ones, which they
    # are wherever no absl program runs: in a notebook, in a test.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    folder = handover.create_folder()
    loaded = (
        batches.to_iter_dataset(_WORKER_READ_OPTIONS)
        .map(handover.Send(folder.name))
        .mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers),
            worker_init_fn=functools.partial(_start_worker, folder=folder.name),
        )
        .map(handover.receive)
    )
    return TrainBatches(iter(loaded), folder)


def _start_worker(worker_index: int, worker_count: int, *, folder: str) -> None:
    """Keeps a worker to one core, away from the accelerator, and at its work.

    Schedulers and terminals signal all processes of a run; when its workers end, the
    run itself decides. They follow it even if it is killed.
    """
    del worker_index, worker_count
    os.environ["JAX_PLATFORMS"] = "cpu"
    cv2.setNumThreads(0)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, args=[folder], daemon=True).start()


def _follow_parent(folder: str) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


@dataclasses.dataclass(frozen=True)
class _Centre(grain.transforms.Map):
    """Cuts or mirrors a sample to a square around its centre."""

    side: int

    def map(self, element: Sample) -> Sample:
        return Sample(
            _fit_centre(element.image_u8, self.side),
            _fit_centre(element.label_image, self.side),
            element.index,
        )


def _fit_centre(pixels: np.ndarray, side: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    missing = [(max(0, side - n)) for n in (height, width)]
    padding = [(n // 2, n - n // 2) for n in missing] + [(0, 0)] * (pixels.ndim - 2)
    pixels = np.pad(pixels, padding, mode="symmetric")
    top, left = ((n - side) // 2 for n in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Stacks samples to a batch of a fixed size, filled up with rows of zeros."""

    targets: tuple[str, ...]
    batch_size: int

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        shape = (self.batch_size, *samples[0].label_image.shape)
        # Written in place: fresh memory for each image, and then for the stack of
        # them, would cost ten times the copy itself.
        image_u8 = np.empty((*shape, 3), np.uint8)
        mask = np.empty((*shape, len(self.targets)), choose_dtype(self.targets))
        for k, sample in enumerate(samples):
            image_u8[k] = sample.image_u8
            make_targets(sample.label_image, self.targets, out=mask[k])
        image_u8[len(samples) :] = 0
        mask[len(samples) :] = 0
        missing = self.batch_size - len(samples)
        index = [sample.index for sample in samples] + [-1] * missing
        return Batch(
            image_u8=image_u8,
            mask=mask,
            valid=np.arange(self.batch_size) < len(samples),
            index=np.array(index, np.int32),
        )


def _to_uint16(label_image: np.ndarray, name: str) -> np.ndarray:
    """Renumbers labels to fit 16 bits, which is what OpenCV can rotate.

    Raises:
      images.ImageError: If one image holds more than 65,535 nuclei.
    """
    if label_image.max(initial=0) > np.iinfo(np.uint16).max:
        ids, label_image = np.unique(label_image, return_inverse=True)
        label_image = label_image + int(ids[0] > 0)
        if label_image.max() > np.iinfo(np.uint16).max:
            raise images.ImageError(f"{name}: more than 65,535 nuclei; cut it in parts")
    return label_image.astype(np.uint16)
