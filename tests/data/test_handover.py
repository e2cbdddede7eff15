import os
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nucseg_jax.data import handover


@pytest.fixture
def folder():
    with handover.create_folder() as folder:
        yield folder


ARRAYS = hnp.arrays(
    st.sampled_from(["u1", "?", "f4", "i4"]), hnp.array_shapes(min_side=0, max_side=9)
)


@given(st.lists(st.dictionaries(st.text(max_size=5), ARRAYS, max_size=4), max_size=6))
def test_what_was_sent_is_received(batches):
    """Through one file, in which a shorter batch may follow a longer one."""
    with handover.create_folder() as folder:
        send = handover.Send(folder)
        for batch in batches:
            received = handover.receive(send(batch))
            assert received.keys() == batch.keys()
            for name, values in batch.items():
                assert received[name].dtype == values.dtype
                np.testing.assert_array_equal(received[name], values)
        assert len(os.listdir(folder)) == min(len(batches), 1)


@given(st.lists(st.booleans(), max_size=40))
def test_a_file_is_used_again_only_after_it_was_read(sends):
    """In any order of sending and receiving, each batch is its own."""
    with handover.create_folder() as folder:
        send, waiting, most = handover.Send(folder), [], 0
        for number, is_sending in enumerate(sends):
            if is_sending:
                waiting.append((number, send(np.full(7, number))))
                most = max(most, len(waiting))
            elif waiting:
                expected, path = waiting.pop(0)
                np.testing.assert_array_equal(handover.receive(path), expected)
        for expected, path in waiting:
            np.testing.assert_array_equal(handover.receive(path), expected)
        assert len(os.listdir(folder)) == most


def test_received_arrays_may_be_written_to(folder):
    send = handover.Send(folder)
    first = handover.receive(send(np.zeros(9)))
    first += 1
    handover.receive(send(np.full(9, 5.0)))
    np.testing.assert_array_equal(first, 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_memory_is_told(folder):
    """The file that is to be used again lies on a device that is always full."""
    send = handover.Send(folder)
    handover.receive(send(np.zeros(9)))
    (free,) = pathlib.Path(folder).iterdir()
    free.unlink()
    free.symlink_to("/dev/full")
    place = re.escape(str(pathlib.Path(folder).parent))
    message = f"^{place} is full: lower --num_workers"
    with pytest.raises(handover.LoaderError, match=message):
        send(np.zeros(100_000))


def test_without_a_file_system_in_memory_the_temporary_folder_serves(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(handover, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(handover.tempfile, "tempdir", str(tmp_path))
    handover.check_room(1, num_workers=2)
    with handover.create_folder() as folder:
        assert pathlib.Path(folder).parent == tmp_path
        assert handover.receive(handover.Send(folder)("batch")) == "batch"
    assert not os.listdir(tmp_path)
