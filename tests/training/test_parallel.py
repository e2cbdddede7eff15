import collections
import signal

import numpy as np
import pytest

from nucseg_jax.training.parallel import AgreedStop, Devices
from nucseg_jax.training.stopping import Stopped, StopRequest


def test_bytes_of_the_loader_become_floats_on_the_device():
    batch = {
        "image_u8": np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1),
        "mask": np.eye(16, dtype=bool)[None, ..., None],
        "valid": np.ones(1, bool),
        "index": np.zeros(1, np.int32),
    }
    devices = Devices()
    for compiled in (
        devices.compile_train_step(lambda state, batch: batch),
        devices.compile_eval_step(lambda variables, batch: batch),
    ):
        seen = compiled(np.zeros(1), batch)
        assert set(seen) == {"image", "mask", "valid"}
        assert seen["image"].dtype == seen["mask"].dtype == np.float32
        # XLA multiplies by the reciprocal: the last bit may differ.
        np.testing.assert_allclose(
            seen["image"], batch["image_u8"] / np.float32(255), rtol=1.2e-7
        )
        np.testing.assert_array_equal(seen["mask"], batch["mask"])


class Others(Devices):
    """Stands for processes of which one gets a signal after some questions."""

    def __init__(self, signum, num_questions):
        super().__init__()
        self._told = collections.deque([0] * num_questions + [signum])

    def start_max(self, number):
        other = self._told.popleft() if len(self._told) > 1 else self._told[0]
        return super().start_max(max(number, other))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_another_process_is_answered_two_questions_later(signum):
    stop = AgreedStop(StopRequest(), Others(signum, num_questions=5))
    assert [stop.ask() for _ in range(9)] == [False] * 7 + [True] * 2
    with pytest.raises(Stopped) as stopped:
        stop.check()
    assert stopped.value.exit_code == 128 + signum


def test_without_a_signal_nothing_stops():
    stop = AgreedStop(StopRequest(), Devices())
    assert not any(stop.ask() for _ in range(10))
