"""The benchmark program, on a tiny network and with a made-up peer."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks.measure import make_batch
from experiments.benchmarks.peer import PeerError, run_peer
from nucseg_jax.config import TARGET_NAMES, DataConfig

ROOT = pathlib.Path(__file__).parents[2]
PEER = """
import json, sys
print("hello")
print(json.dumps({"arguments": sys.argv[1:], "infer_s_per_image": 1000.0,
                  "train_s_per_image": 2000.0}))
"""


@pytest.fixture
def peer(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    return f"{sys.executable} {script}"


def test_peer_gets_the_same_task_and_its_last_line_counts(peer):
    result = run_peer(
        peer, batch_size=3, features=(2, 4), size=32, dtype="bfloat16", steps=7
    )
    assert result["arguments"] == [
        *("--batch", "3", "--features", "2,4", "--size", "32", "--dtype", "bfloat16"),
        *("--steps", "7"),
    ]
    assert result["train_s_per_image"] == 2000.0


def test_a_peer_that_fails_says_why():
    command = f"{sys.executable} -c \"raise SystemExit('no such module')\""
    with pytest.raises(PeerError, match="no such module"):
        run_peer(
            command, batch_size=1, features=(2, 4), size=32, dtype="float32", steps=1
        )


def test_the_program_measures_beside_the_peer(peer, tmp_path):
    output = tmp_path / "speed.json"
    command = [sys.executable, "-m", "experiments.benchmarks", f"--output={output}"]
    command += ["--features=2,3", "--size=32", "--repeats=2", "--batch_sizes=1"]
    # As recipes have it: several targets, averaged parameters.
    command += ["--targets=foreground,boundary,distance", "--ema_decay=0.9"]
    command += [f"--peer={peer}", "--parts=train,infer,fast"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    rows = {row["part"]: row for row in report["rows"]}
    assert list(rows) == ["train", "infer", "fast 1"]
    for name, seconds in (("infer", 1000), ("train", 2000)):
        row = rows[name]
        ours = seconds / row["ratio"]
        assert min(row["all_s_per_image"]) <= ours <= max(row["all_s_per_image"])
        assert f"{row['s_per_image']:.4f}" in result.stdout
    assert 0 < rows["fast 1"]["gflop"] <= rows["infer"]["gflop"]
    assert 2 < rows["train"]["gflop"] / rows["infer"]["gflop"] < 4
    assert report["machine"]["product_gflop_per_s_float32"] > 0


def test_what_was_measured_before_a_failure_is_kept(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text("import sys\nassert sys.argv[2] == '1', 'too large'\n" + PEER)
    output = tmp_path / "speed.json"
    command = [sys.executable, "-m", "experiments.benchmarks", f"--output={output}"]
    command += ["--features=2,3", "--size=32", "--repeats=1", "--batch_sizes=1,2"]
    command += [f"--peer={sys.executable} {script}", "--parts=infer"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode and "too large" in result.stderr
    rows = json.loads(output.read_text())["rows"]
    assert [row["batch_size"] for row in rows] == [1]


def test_a_batch_is_made_for_all_targets():
    batch = make_batch(2, DataConfig(size=16, targets=TARGET_NAMES))
    assert batch["image"].shape == (2, 16, 16, 3)
    assert batch["mask"].shape == (2, 16, 16, len(TARGET_NAMES))
    assert {*np.unique(batch["mask"])} == {0.0, 1.0}
