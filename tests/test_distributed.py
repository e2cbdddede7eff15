"""Two processes on one machine train as one does with the same global batch."""

import os
import signal
import socket

import jax
import numpy as np
import pytest

from nucseg_jax.config import DataConfig
from nucseg_jax.data import pipeline
from nucseg_jax.data.index import load_subsets
from tests.helpers import write_disc_dataset
from tests.test_kill import final_state, finish, rows, start, wait_for, wait_for_steps

SETTINGS = ["--steps_per_epoch=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    write_disc_dataset(folder / "data", num_images=8, side=40)
    assert finish(start(folder, "one", *SETTINGS, "--num_epochs=2"))[0] == 0
    return folder


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start_two(folder, name, *arguments):
    """Starts two processes that are told of each other."""
    told = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    return [
        start(folder, name, *arguments, *told, f"--process_id={number}")
        for number in range(2)
    ]


def start_two_by_slurm(folder, name, *arguments):
    """Starts two processes with the variables that `srun` sets."""
    step = {
        # JAX makes a port of it, 61440 + the number modulo 4096.
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": "0",
    }
    return [
        start(folder, name, *arguments, **step, SLURM_PROCID=str(number))
        for number in range(2)
    ]


def assert_close(folder, first, second):
    one, two = (final_state(folder, name) for name in (first, second))
    for part in ("params", "batch_stats", "ema"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            one[part],
            two[part],
        )
    for a, b in zip(rows(folder, first), rows(folder, second), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_two_processes_train_the_model_of_one_and_survive_a_restart(folder):
    """Told of each other at first, started again by SLURM."""
    for epochs, start_both in ((1, start_two), (2, start_two_by_slurm)):
        pair = start_both(folder, "two", *SETTINGS, f"--num_epochs={epochs}")
        (code, told), (other_code, other_told) = map(finish, pair)
        assert code == other_code == 0, told + other_told
        assert "device: 2 x CPU" in told
        assert "device" not in other_told  # One of them tells.
    assert "after epoch 1" in told
    assert_close(folder, "one", "two")


def test_two_devices_of_one_process_train_the_model_of_one(folder):
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    for epochs in (1, 2):
        training = start(
            folder, "local", *SETTINGS, f"--num_epochs={epochs}", **devices
        )
        code, told = finish(training)
        assert code == 0, told
        assert "device: 2 x CPU" in told
    assert "after epoch 1" in told
    assert_close(folder, "one", "local")


def test_a_kubernetes_job_that_cannot_ask_says_what_is_missing(folder):
    pod = start(folder, "pod", "--num_epochs=1", JOB_COMPLETION_INDEX="0")
    code, told = finish(pod)
    assert code == 1 and "pip install 'jax[k8s]'" in told
    assert not (folder / "pod").exists()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_stops_both_at_the_same_step(folder, signum):
    pair = start_two(folder, f"stop_{signum}", "--steps_per_epoch=100000")
    wait_for_steps(pair[0])
    os.kill(pair[1].process.pid, signum)
    results = [finish(training, timeout=60) for training in pair]
    assert [code for code, _ in results] == [128 + signum] * 2, results
    assert len(os.listdir(folder / f"stop_{signum}" / "interrupted")) == 1


def test_a_signal_amid_epochs_that_are_soon_over_stops_both(folder):
    """Most of the time they validate and save."""
    settings = ("--steps_per_epoch=2", "--num_epochs=100000")
    pair = start_two(folder, "soon", *settings)
    wait_for(lambda: pair[0].read().count("validation:") > 2, pair[0])
    os.kill(pair[1].process.pid, signal.SIGTERM)
    results = [finish(training, timeout=60) for training in pair]
    assert [code for code, _ in results] == [143, 143], results
    pair = start_two(folder, "soon", *settings)
    wait_for(lambda: pair[0].read().count("validation:") > 2, pair[0])
    os.kill(pair[0].process.pid, signal.SIGTERM)
    results = [finish(training, timeout=60) for training in pair]
    assert [code for code, _ in results] == [143, 143], results
    assert "going on after epoch" in results[0][1]


def test_batches_must_divide_among_devices(folder):
    for code, told in map(finish, start_two(folder, "odd", "--batch_size=3")):
        assert code == 1
        assert "batch_size is 3; it must be a multiple of the number of devices" in told


def test_shards_of_a_batch_hold_each_example_once(folder):
    config = DataConfig(data_dir=str(folder / "data"), size=32, augmentation="flips")
    examples = load_subsets(config)["train"]
    parts = []
    for shard in ((0, 1), (0, 2), (1, 2)):
        batches = pipeline.make_train_batches(
            examples, config, batch_size=4, seed=3, shard=shard
        )
        parts.append([next(batches) for _ in range(6)])
        batches.close()
    # Six batches are four epochs of the six examples.
    numbers = np.concatenate([b["index"] for part in parts[1:] for b in part])
    np.testing.assert_array_equal(np.bincount(numbers), np.full(6, 4))
    for whole, first, second in zip(*parts, strict=True):
        for name in ("image_u8", "mask", "index"):
            np.testing.assert_array_equal(whole[name][0::2], first[name])
            np.testing.assert_array_equal(whole[name][1::2], second[name])
