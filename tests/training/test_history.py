from tensorboardX.proto.event_pb2 import Event

from nucseg_jax.training.history import History, read_history


def row(epoch, loss=0.5):
    return {"epoch": epoch + 1, "step": 10 * (epoch + 1), "train_loss": loss}


def test_rows_come_back_from_the_file(tmp_path):
    history = History(tmp_path)
    for epoch in range(3):
        history.append(row(epoch, loss=1 / 3 + epoch))
    history.close()
    rows = read_history(tmp_path / "history.csv")
    assert [r["train_loss"] for r in rows] == [1 / 3, 4 / 3, 7 / 3]


def test_resuming_drops_the_epochs_that_will_be_done_again(tmp_path):
    history = History(tmp_path)
    for epoch in range(4):
        history.append(row(epoch))
    history.close()
    history = History(tmp_path, num_epochs_done=2)
    history.append(row(2, loss=0.25))
    history.close()
    rows = read_history(tmp_path / "history.csv")
    assert [r["epoch"] for r in rows] == [1, 2, 3]
    assert rows[2]["train_loss"] == 0.25


def test_the_file_does_not_change_by_being_written_again(tmp_path):
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    for folder, stop in ((unbroken, 9), (resumed, 2)):
        folder.mkdir()
        history = History(folder)
        for epoch in range(4):
            if epoch == stop:
                history.close()
                history = History(folder, num_epochs_done=stop)
            history.append(row(epoch, loss=1 / 3 + epoch))
        history.close()
    files = [(folder / "history.csv").read_bytes() for folder in (unbroken, resumed)]
    assert files[0] == files[1]


def test_a_newer_version_may_know_more_columns(tmp_path):
    history = History(tmp_path)
    history.append(row(0))
    history.close()
    history = History(tmp_path, num_epochs_done=1)
    history.append(row(1) | {"val_best_iou": 0.5})
    history.close()
    rows = read_history(tmp_path / "history.csv")
    assert rows == [row(0), row(1) | {"val_best_iou": 0.5}]


def test_tensorboard_events_hold_the_numbers(tmp_path):
    history = History(tmp_path)
    history.append(row(0, loss=0.125))
    history.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    told = [
        (value.tag, event.step, value.simple_value)
        for event in read_events(file.read_bytes())
        for value in event.summary.value
    ]
    assert told == [("train_loss", 10, 0.125)]


def read_events(records):
    """Each record: length in 8 bytes, 4 bytes of sum, the event, 4 bytes of sum."""
    while records:
        length = int.from_bytes(records[:8], "little")
        yield Event.FromString(records[12 : 12 + length])
        records = records[16 + length :]


def test_no_file_is_no_history(tmp_path):
    assert read_history(tmp_path / "history.csv") == []
