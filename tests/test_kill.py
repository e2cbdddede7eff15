"""A real training under signals: nothing is lost, and it ends as if none had come."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pytest
from flax import serialization

from nucseg_jax import checkpoints as ckpt
from nucseg_jax.training import optim, state
from nucseg_jax.training.history import read_history
from tests.helpers import write_disc_dataset

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = [
    "--features=4,6",
    "--size=32",
    "--batch_size=4",
    "--learning_rate=1e-3",
    "--decay=constant",
    "--augmentation=flips",
    "--ema_decay=.9",
]


@dataclasses.dataclass
class Training:
    """A running training, and the file that it writes its output to."""

    process: subprocess.Popen
    log: pathlib.Path

    def read(self):
        return self.log.read_text()


def start(folder, name, *arguments, **environment):
    command = [sys.executable, "-m", "experiments.train", *SETTINGS, *arguments]
    command += [f"--workdir={folder / name}", f"--data_dir={folder / 'data'}"]
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Training(process, pathlib.Path(log.name))


def finish(training, timeout=300):
    returncode = training.process.wait(timeout=timeout)
    output = training.read()
    assert "Traceback" not in output, output
    return returncode, output


def wait_for(condition, training, seconds=180):
    """Waits until something is true, as long as the training lives."""
    end = time.monotonic() + seconds
    while not condition():
        assert training.process.poll() is None, training.read()
        assert time.monotonic() < end, training.read()
        time.sleep(0.02)


def wait_for_steps(training):
    """Waits until the first progress bar shows a loss."""
    wait_for(lambda: "loss" in training.read(), training)


def rows(folder, name):
    """The history without what a clock says."""
    return [{**r, "seconds": 0} for r in read_history(folder / name / "history.csv")]


def final_state(folder, name):
    """All arrays of the last checkpoint, as plain dicts."""
    with contextlib.closing(ckpt.Checkpoints(folder / name)) as saved:
        config = saved.saved_config()
        created = state.create_train_state(
            ckpt.create_model(config),
            optim.create_optimizer(config.train, config.train.steps_per_epoch),
            seed=9,
            ema_decay=config.train.ema_decay,
        )
        return serialization.to_state_dict(saved.restore_latest(created)[0])


def assert_same_end(folder, first, second):
    assert rows(folder, first) == rows(folder, second)
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(folder, first),
        final_state(folder, second),
    )


def files_of_loaders(training):
    """What loading processes of this training left where they hand over batches."""
    name = f"nucseg-{training.process.pid}-*"
    places = {pathlib.Path(tempfile.gettempdir()), pathlib.Path("/dev/shm")}
    return [path for place in places for path in place.glob(name)]


def assert_freed(training):
    """Loading processes follow within moments."""
    end = time.monotonic() + 20
    while files_of_loaders(training) and time.monotonic() < end:
        time.sleep(0.2)
    assert not files_of_loaders(training)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    write_disc_dataset(folder / "data", num_images=8, side=40)
    return folder


LONG = "--steps_per_epoch=1000000"


@pytest.mark.parametrize(
    "signum, code, workers", [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 2)]
)
def test_a_signal_to_all_processes_saves_within_seconds(folder, signum, code, workers):
    """In the midst of an epoch that would take for ever."""
    name = f"stop_{code}"
    training = start(folder, name, LONG, f"--num_workers={workers}")
    wait_for_steps(training)
    os.killpg(training.process.pid, signum)
    sent = time.monotonic()
    returncode, output = finish(training, timeout=60)
    assert returncode == code, output
    assert time.monotonic() - sent < 30
    assert f"stopped by {signum.name}; the same command goes on" in output
    (step,) = os.listdir(folder / name / "interrupted")
    assert int(step) > 0
    assert_freed(training)


def test_stopped_and_started_again_is_as_if_nothing_was(folder):
    """Stopped amid an epoch, with another number of loading processes."""
    settings = ["--steps_per_epoch=60", "--num_epochs=3"]
    assert finish(start(folder, "unbroken", *settings))[0] == 0
    training = start(folder, "stopped", *settings, "--num_workers=1")
    wait_for_steps(training)
    os.kill(training.process.pid, signal.SIGTERM)
    assert finish(training)[0] == 143
    assert finish(start(folder, "stopped", *settings))[0] == 0
    assert_same_end(folder, "unbroken", "stopped")


def test_a_killed_loading_process_ends_the_run_with_its_cause(folder):
    training = start(folder, "worker", LONG, "--num_workers=1")
    wait_for_steps(training)
    kill_loader(training.process.pid)
    returncode, output = finish(training, timeout=60)
    assert returncode == 1
    assert "error: a loading process died (exit code -9: killed" in output


@pytest.mark.slow
def test_loading_processes_follow_a_killed_run(folder):
    training = start(folder, "orphans", LONG, "--num_workers=2")
    wait_for_steps(training)
    assert files_of_loaders(training)
    training.process.kill()
    training.process.wait()
    end, pgid = time.monotonic() + 10, training.process.pid
    while time.monotonic() < end and group(pgid):
        time.sleep(0.1)
    assert not group(pgid)
    assert_freed(training)


def group(pgid):
    """Processes of a group that still run."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == pgid:
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [entry] if state != "Z" else []
    return found


def kill_loader(pid):
    """Kills the first loading process: a child by multiprocessing's spawn."""
    for entry in group(pid):
        command = (entry / "cmdline").read_bytes()
        if b"spawn_main" in command:
            os.kill(int(entry.name), signal.SIGKILL)
            return
    raise AssertionError("there was no loading process")


@pytest.mark.slow
def test_seventy_kills_lose_nothing(folder):
    """50 SIGKILLs and 20 SIGTERMs at random moments, then the end of the run."""
    rng = np.random.default_rng(0)
    signals = rng.permutation([signal.SIGKILL] * 50 + [signal.SIGTERM] * 20)
    settings, epochs = ["--steps_per_epoch=40"], 0
    for number, signum in enumerate(signals):
        workers = f"--num_workers={rng.integers(2)}"
        training = start(folder, "kill", *settings, workers, "--num_epochs=1000000")
        if number:  # From the start of Python to a few epochs after it goes on.
            time.sleep(rng.uniform(0, 14))
        else:
            wait_for_steps(training)
        os.kill(training.process.pid, int(signum))
        finish(training)
        done = len(rows(folder, "kill"))
        assert done >= epochs, f"{epochs - done} epochs lost by kill {number}"
        epochs = done
    settings.append(f"--num_epochs={epochs + 2}")
    assert finish(start(folder, "kill", *settings))[0] == 0
    assert finish(start(folder, "whole", *settings), timeout=1200)[0] == 0
    print(f"70 kills over {epochs} epochs, 0 lost")
    assert epochs > 5
    assert_same_end(folder, "kill", "whole")
