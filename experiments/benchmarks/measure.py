"""What is timed: the train step, inference in every mode, and the loader.

Timers run single repeats after a warm-up, so that the caller may alternate them with a
peer's and quote medians and ratios. Inputs are random, never zeros, for which some
hardware is faster.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from nucseg_jax.checkpoints import create_model
from nucseg_jax.config import Config, DataConfig
from nucseg_jax.data import index, pipeline
from nucseg_jax.inference.predictor import make_predict_fn
from nucseg_jax.training import losses, optim, state, step

# At most, while nobody asks for them: eight by threads, thirteen by each process.
_WAITING_BATCHES = 26
_READING_AHEAD_SECONDS = 1.5


def make_batch(batch_size: int, data: DataConfig) -> dict[str, jax.Array]:
    """Draws a batch as the train step takes it."""
    shape = (batch_size, data.size, data.size)
    draw = jax.random.uniform(jax.random.key(0), (*shape, 3 + len(data.targets)))
    return {
        "image": draw[..., :3],
        "mask": (draw[..., 3:] > 0.8).astype(jnp.float32),
        "valid": jnp.ones(batch_size, bool),
    }


def train_step_timer(
    config: Config, batch: dict[str, jax.Array]
) -> tuple[Callable[[], float], dict[str, float]]:
    """Compiles the train step; returns a timer of one step and what XLA says of it."""
    current = _create_state(config)
    loss = losses.make_loss(config.train.supervision, config.data.targets)
    train_step = step.make_train_step(loss, ema_decay=config.train.ema_decay)
    jitted = jax.jit(train_step, donate_argnums=0)
    compiled, about = _compile(jitted, current, batch)

    def run() -> float:
        nonlocal current
        start = time.perf_counter()
        current, metrics = compiled(current, batch)
        jax.block_until_ready(metrics)
        jax.block_until_ready(current)
        return time.perf_counter() - start

    run()
    return run, about


def inference_timer(
    config: Config, image: jax.Array, *, head: int = 0
) -> tuple[Callable[[], float], dict[str, float]]:
    """Compiles inference, of all heads if `head` is 0; as `train_step_timer`."""
    variables = _create_state(config).variables
    mode, head_or_none = ("fast", head) if head else ("accurate", None)
    predict = make_predict_fn(create_model(config), variables, mode, head=head_or_none)
    compiled, about = _compile(predict, image)

    def run() -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled(image))
        return time.perf_counter() - start

    run()
    return run, about


def fastest(run: Callable[[], float], steps: int) -> float:
    """Warms up by two runs, as long idling cools caches, and times the fastest."""
    for _ in range(2):
        run()
    return min(run() for _ in range(steps))


@contextlib.contextmanager
def loader(
    config: Config, examples: list[index.Example], num_workers: int
) -> Iterator[Callable[[float], float]]:
    """Starts the training loader and fills its cache.

    Yields:
      Function of seconds to measure for, to images a second.
    """
    batches = pipeline.make_train_batches(
        examples,
        config.data,
        batch_size=config.train.batch_size,
        seed=0,
        num_workers=num_workers,
    )

    def rate(seconds: float) -> float:
        # The loader that was measured before still reads ahead, and so did this one.
        time.sleep(_READING_AHEAD_SECONDS)
        _skip(batches, _WAITING_BATCHES)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            count += len(next(batches)["valid"])
        return count / (time.perf_counter() - start)

    try:
        _skip(batches, 2 * len(examples) // config.train.batch_size)
        yield rate
    finally:
        batches.close()


def _skip(batches: Iterator[pipeline.Batch], count: int) -> None:
    for _ in itertools.islice(batches, count):
        pass


def transforms_rate(
    config: Config, examples: list[index.Example], seconds: float
) -> float:
    """Measures images a second of the bare transforms on one core, without a loader."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        return _transforms_rate(config, examples, seconds)
    finally:
        cv2.setNumThreads(threads)


def _transforms_rate(
    config: Config, examples: list[index.Example], seconds: float
) -> float:
    prepared = pipeline.PreparedExamples(examples, config.data)
    samples = [prepared[i] for i in range(len(prepared))]
    augment, rng = pipeline.Augment(config.data), np.random.default_rng(0)
    augment.random_map(samples[0], rng)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        augment.random_map(samples[count % len(samples)], rng)
        count += 1
    return count / (time.perf_counter() - start)


def product_peak(dtype: Any) -> float:
    """Measures the rate of a large matrix product, FLOP/s: what the device can do."""
    # On a GPU a small one would be done before the next is asked for.
    side = 2048 if jax.default_backend() == "cpu" else 8192
    rng = np.random.default_rng(0)
    left, right = (jnp.asarray(rng.normal(size=(side, side)), dtype) for _ in range(2))
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(left, right))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(left, right))
        times.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(times)


def _create_state(config: Config) -> state.TrainState:
    tx = optim.create_optimizer(config.train, steps_per_epoch=50)
    return state.create_train_state(
        create_model(config), tx, seed=0, ema_decay=config.train.ema_decay
    )


def _compile(function: Any, *args: Any) -> tuple[Any, dict[str, float]]:
    """Compiles ahead of time; returns FLOPs, temporary memory and seconds taken.

    FLOPs are XLA's count for the program as a GPU would run it: on CPU it sees neither
    into oneDNN nor that the loops of the kernel gradients run more than once.
    """
    start = time.perf_counter()
    compiled = function.lower(*args).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    plain = function.trace(*args).lower(lowering_platforms=("cuda",))
    return compiled, {
        "compile_s": seconds,
        "gflop": plain.cost_analysis()["flops"] / 1e9,
        "temporary_mib": getattr(memory, "temp_size_in_bytes", 0) / 2**20,
    }
