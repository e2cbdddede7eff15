import os
import signal

import pytest

from nucseg_jax.training.stopping import Stopped, StopRequest


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_remembered_until_it_is_asked_for(signum, code):
    with StopRequest() as stop:
        stop.check()
        assert not stop.ask()
        os.kill(os.getpid(), signum)
        assert stop.ask()
        with pytest.raises(Stopped, match=signum.name) as caught:
            stop.check()
    assert caught.value.exit_code == code


def test_a_second_signal_acts_at_once():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # As in a program.
    with StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_given_back():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_watched_items_end_at_the_signal():
    seen = []
    with StopRequest() as stop, pytest.raises(Stopped):
        for item in stop.watch(range(5)):
            seen.append(item)
            if item == 2:
                os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [0, 1, 2]
