"""Every head of a network by itself: in numbers, as a figure and as a table."""

import dataclasses
import json

import PIL.Image

from experiments import tables
from nucseg_jax.config import ModelConfig
from tests.helpers import TINY_FEATURES, write_disc_dataset
from tests.test_checkpoints import CONFIG, create_state, save


def test_each_head_is_scored_timed_and_drawn(load_program, tmp_path, capsys):
    write_disc_dataset(tmp_path / "data", num_images=4, side=24)
    config = dataclasses.replace(CONFIG, model=ModelConfig(features=TINY_FEATURES))
    save(tmp_path / "run", create_state(config), step=1, iou=0.5, config=config)
    program = load_program(
        "heads",
        f"--checkpoint={tmp_path / 'run'}",
        f"--data_dir={tmp_path / 'data'}",
        f"--results={tmp_path}",
        "--name=tiny",
    )
    program.main()
    assert (
        "exported without a list of the images that it learned from"
        in capsys.readouterr().out
    )
    result = json.loads((tmp_path / "heads_tiny.json").read_text())
    rows = result["rows"]
    depth = len(TINY_FEATURES)
    assert [row["head"] for row in rows] == [*range(1, depth), 0]
    sizes = [row["parameters"] for row in rows]
    assert sizes == sorted(set(sizes))
    assert all(row["s_per_image"] > 0 and 0 <= row["iou"] <= 1 for row in rows)
    with PIL.Image.open(tmp_path / "heads_tiny.png") as picture:
        assert picture.width > 300
    lines = tables.heads_table([result]).splitlines()[2:]
    assert len(lines) == depth
    assert lines[-1].startswith("| tiny, val | all |") and lines[-1].endswith("| 1.0 |")
