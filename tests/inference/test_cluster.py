"""One image on a Dask cluster of two processes equals the same image in one process."""

import csv
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import dask.config
import distributed
import numpy as np
import pytest
import skimage.draw
import tifffile
import zarr

from nucseg_jax.checkpoints import write_decodings
from nucseg_jax.config import Config, DataConfig, DecodingConfig, ModelConfig
from nucseg_jax.data.errors import MAX_PIXELS
from nucseg_jax.inference import block_tasks, cluster
from nucseg_jax.inference.block_tasks import Network
from nucseg_jax.inference.blocks import Blocks
from nucseg_jax.inference.contrast import Contrast
from nucseg_jax.inference.jobs import Options, find_jobs
from nucseg_jax.inference.run import segment_files
from nucseg_jax.inference.segmenter import load_segmenter
from nucseg_jax.training.optim import create_optimizer
from nucseg_jax.training.state import TrainState
from tests.data.files import write_film, write_ome_zarr
from tests.helpers import same_partition
from tests.inference.large_image import brightness_network
from tests.test_checkpoints import save

ROOT = pathlib.Path(__file__).parents[2]
SIDE = 512  # Of a block.
SHAPE = (1060, 1200)  # Three by three blocks, those at the end small.
OPTIONS = Options(save=cluster.SAVE, max_pixels=MAX_PIXELS)
# Alike to the last digit that a table has, but for what sums of float32 decide.
TOLERANCE = 2e-5


def draw_nuclei():
    """Discs on a grid, some touching, on corners and edges of blocks, too: uint16."""
    rng = np.random.default_rng(0)
    image = rng.integers(300, 420, SHAPE).astype(np.uint16)
    for row in range(0, SHAPE[0], 32):
        for column in range(0, SHAPE[1], 32):
            centre = np.array([row, column]) + rng.integers(-4, 5, 2)
            disc = skimage.draw.disk(centre, rng.integers(5, 16), shape=SHAPE)
            image[disc] = rng.integers(2500, 4000)
    for corner in ((512, 512), (512, 1024), (1024, 512), (1024, 1024)):
        image[skimage.draw.disk(corner, 14)] = 3000
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An OME-Zarr, a network that finds bright pixels, and one process's result."""
    root = tmp_path_factory.mktemp("cluster")
    write_ome_zarr(
        root / "slide.zarr", draw_nuclei(), "yx", scale=(0.5, 0.5), chunks=(256, 256)
    )
    data = DataConfig(framing="crop", clahe_clip_limit=0, normalization="stretch")
    config = Config(
        data=data,
        model=ModelConfig(features=(2, 3, 4)),
        decoding=DecodingConfig(min_area=5),
    )
    model, variables = brightness_network(config.model.features)
    optimizer = create_optimizer(config.train, 1)
    state = TrainState.create(apply_fn=model.apply, tx=optimizer, ema=None, **variables)
    save(root / "run", state, step=1, iou=0.5, config=config)
    segmenter = load_segmenter(root / "run")
    (outcome,) = segment_files(
        find_jobs(root / "slide.zarr").jobs, segmenter, root / "one", OPTIONS
    )
    assert not outcome.error
    return root


def start_workers():
    return distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address="localhost:0",
    )


@pytest.fixture(scope="module")
def workers():
    with start_workers() as workers:
        yield workers


@pytest.fixture
def client(workers):
    with distributed.Client(workers) as client:
        yield client


def segment(client, folder, output, **changes):
    (job,) = find_jobs(folder / "slide.zarr").jobs
    network = Network.find(str(folder / "run"))
    changes = {"side": SIDE, **changes}
    return cluster.segment_image(client, job, network, output, OPTIONS, **changes)


def read_level(output, level=0):
    return zarr.open_group(output / "labels_zarr/slide.zarr", mode="r")[str(level)][:]


def read_table(output):
    """Rows from top to bottom."""
    with open(output / "tables/slide.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["id"]) for row in rows) == list(range(1, len(rows) + 1))
    return sorted(rows, key=lambda row: (float(row["y"]), float(row["x"])))


def check_tables(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"id"}:
            if name in ("unit", "touches_border"):
                assert one[name] == other[name]
            else:
                value = pytest.approx(float(other[name]), rel=TOLERANCE)
                assert float(one[name]) == value


def contents(output):
    """The label image and the table, byte by byte."""
    found = [*output.rglob("labels_zarr/**/*"), output / "tables/slide.csv"]
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in found
        if path.is_file()
    }


def run_program(folder, output, *arguments):
    """Runs the command that the README tells."""
    command = [sys.executable, "-m", "experiments.predict_dask", f"--block={SIDE}"]
    command += [f"--input={folder / 'slide.zarr'}", f"--output={output}"]
    return subprocess.run(
        [*command, f"--checkpoint={folder / 'run'}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def result(folder, workers):
    """The output folder of a run on the workers, and what the program told."""
    output = folder / "many"
    run = run_program(folder, output, f"--scheduler={workers.scheduler_address}")
    assert run.returncode == 0, run.stderr
    return output, run.stdout


def test_the_nuclei_are_those_of_one_process(folder, result):
    labels, expected = read_level(result[0]), read_level(folder / "one")
    assert labels.dtype == np.uint32 and labels.shape == SHAPE
    assert same_partition(labels, expected)
    assert len(np.unique(labels)) - 1 == labels.max() == expected.max() > 1000
    assert f"slide.zarr: {labels.max():,} new nuclei" in result[1]
    assert "a worker's device: 1 x CPU" in result[1]


def test_the_table_and_the_summary_are_those_of_one_process(folder, result):
    check_tables(read_table(result[0]), read_table(folder / "one"))
    summaries = [
        json.loads((root / "tables/slide.json").read_text())
        for root in (result[0], folder / "one")
    ]
    for summary in summaries:
        del summary["seconds"], summary["outputs"], summary["settings"]
    assert summaries[0] == summaries[1]


def test_rows_have_the_ids_of_the_label_image(result):
    areas = {int(row["id"]): float(row["area"]) for row in read_table(result[0])}
    counted = np.bincount(read_level(result[0]).ravel())[1:] * 0.25  # Square µm.
    np.testing.assert_allclose([areas[n + 1] for n in range(len(counted))], counted)


def test_every_level_takes_every_second_pixel_of_the_one_before(folder, result):
    group = zarr.open_group(result[0] / "labels_zarr/slide.zarr", mode="r")
    one = zarr.open_group(folder / "one/labels_zarr/slide.zarr", mode="r")
    assert dict(group.attrs) == dict(one.attrs)
    assert len(list(group.array_keys())) == len(list(one.array_keys())) == 3
    for level in (1, 2):
        np.testing.assert_array_equal(
            read_level(result[0], level),
            read_level(result[0])[:: 2**level, :: 2**level],
        )


def test_results_are_joined_and_nothing_else_is_left_behind(result):
    assert sorted(path.name for path in result[0].iterdir()) == [
        "labels_zarr",
        "nuclei.csv",
        "report.html",
        "settings.json",
        "summary.csv",
        "tables",
    ]
    with open(result[0] / "nuclei.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == read_level(result[0]).max()


def test_a_finished_image_is_skipped(client, folder, result):
    outcome = segment(client, folder, result[0])
    assert (outcome.num_planes, outcome.num_skipped) == (0, 1)


def test_after_a_break_it_goes_on_with_the_blocks_of_the_same_plan(
    client, folder, result, tmp_path
):
    def stop(name, stage, done, total):
        if (stage, done) == ("segmenting", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segment(client, folder, tmp_path, tell_progress=stop)
    (plan,) = tmp_path.glob("blocks/*/*")
    done = {path: path.stat().st_mtime_ns for path in plan.glob("*.npy")}
    assert len(done) >= 4 and not (tmp_path / "labels_zarr").exists()

    other = plan.with_name("0123456789abcdef")
    other.mkdir()
    (other / "00000_00000.npy").write_bytes(b"of another plan")
    told = []

    def compare(name, stage, number, total):
        told.append((name, stage, number, total))
        if (stage, number) == ("segmenting", total):
            assert all(path.stat().st_mtime_ns == at for path, at in done.items())
            assert not other.exists()
        if stage == "level 1":
            # On the disk where it will lie.
            (unfinished,) = (tmp_path / "labels_zarr").iterdir()
            assert unfinished.name.startswith(".nucseg-")

    segment(client, folder, tmp_path, tell_progress=compare)
    assert contents(tmp_path) == contents(result[0])
    for stage in ("contrast", "segmenting", "writing"):
        assert told.count(("slide.zarr", stage, 9, 9)) == 1


def test_an_error_of_a_worker_is_told_as_it_is(client, folder, tmp_path):
    (job,) = find_jobs(folder / "slide.zarr").jobs
    job = dataclasses.replace(job, image=folder / "missing.zarr")
    outcome = cluster.segment_image(
        client, job, Network.find(str(folder / "run")), tmp_path, OPTIONS, side=SIDE
    )
    assert outcome.error == f"{folder / 'missing.zarr'}: no such file"
    assert outcome.num_planes == 0


def test_a_damaged_page_leaves_the_others_and_no_old_result(client, folder, tmp_path):
    path, output = tmp_path / "film.tif", tmp_path / "out"
    network = Network.find(str(folder / "run"))

    def segment_film(seed, num_damaged):
        write_film(path, seed=seed, num_damaged=num_damaged)
        (job,) = find_jobs(path).jobs
        return cluster.segment_image(client, job, network, output, OPTIONS, side=SIDE)

    assert segment_film(0, 0).num_planes == 3
    outcome = segment_film(9, 1)
    assert "film.tif t=1: cannot be read" in outcome.error
    assert (outcome.num_planes, outcome.num_retired) == (2, 1)
    path.write_bytes(b"no image any more")
    (job,) = find_jobs(path).jobs
    outcome = cluster.segment_image(client, job, network, output, OPTIONS, side=SIDE)
    assert "is no PNG" in outcome.error and outcome.num_retired == 2


def test_one_hue_is_seen_in_gray_as_in_one_process(folder, tmp_path):
    gray = draw_nuclei()[:300, :300]
    blue = np.stack([0 * gray, 0 * gray, gray], axis=-1)
    tifffile.imwrite(tmp_path / "blue.tif", blue, photometric="rgb")
    (job,) = find_jobs(tmp_path / "blue.tif").jobs
    network = Network.find(str(folder / "run"))
    (plane,) = block_tasks.describe_planes(job, OPTIONS, network)
    assert plane.segmented == (2,) and plane.info.seen == ("blue",)
    source = block_tasks.Source(job, 0, OPTIONS, plane.segmented)
    with source.open() as opened:
        assert opened.segmented == (2,)
    assert block_tasks.find_range(source)[1] > 2000


def test_a_worker_with_another_network_is_refused(folder, tmp_path):
    (job,) = find_jobs(folder / "slide.zarr").jobs
    network = Network.find(str(folder / "run"))
    (plane,) = block_tasks.describe_planes(job, OPTIONS, network)
    work = block_tasks.Work(
        source=block_tasks.Source(job, 0, OPTIONS, plane.segmented),
        network=dataclasses.replace(network, digest="of another"),
        info=plane.info,
        blocks=Blocks(*SHAPE, side=SIDE, halo=plane.halo, rim=plane.rim),
        contrast=Contrast(None),
        scratch=tmp_path,
    )
    with pytest.raises(ValueError, match="run: is another network on"):
        block_tasks.segment_block(work, (0, 0), {})


@pytest.fixture
def little(folder, tmp_path):
    """A folder with an image of one block, and a copy of the network."""
    shutil.copytree(folder / "run", tmp_path / "run")
    pixels = draw_nuclei()[:300, :300]
    write_ome_zarr(
        tmp_path / "slide.zarr", pixels, "yx", scale=(0.5, 0.5), chunks=(256, 256)
    )
    return tmp_path


def test_workers_that_live_on_load_a_network_again_that_was_replaced(client, little):
    assert segment(client, little, little / "first").num_nuclei > 50
    write_decodings(little / "run", [DecodingConfig(min_area=100_000)])
    assert segment(client, little, little / "second").num_nuclei == 0


def test_each_plan_has_a_folder_for_its_blocks(client, little):
    """So that late tasks of an earlier run cannot write into those of the next."""
    plans = []

    def stop(name, stage, done, total):
        if stage == "segmenting":
            plans.append(*(little / "out").glob("blocks/*/*"))
            raise KeyboardInterrupt

    for min_area in (5, 5, 6):
        write_decodings(little / "run", [DecodingConfig(min_area=min_area)])
        with pytest.raises(KeyboardInterrupt):
            segment(client, little, little / "out", tell_progress=stop)
    assert plans[0] == plans[1] != plans[2]
    assert plans[0].parent == plans[2].parent


def test_an_image_that_changes_meanwhile_is_not_taken_for_finished(client, little):
    def change(name, stage, done, total):
        if stage == "segmenting":
            write_ome_zarr(little / "slide.zarr", draw_nuclei()[300:], "yx")

    outcome = segment(client, little, little / "out", tell_progress=change)
    assert "slide.zarr: changed while it was read; run again" in outcome.error
    assert outcome.num_planes == outcome.num_nuclei == 0
    outcome = segment(client, little, little / "out")
    assert outcome.num_nuclei == read_level(little / "out").max() > 500


def test_what_is_left_of_a_run_that_was_killed_at_its_end_is_removed(
    client, little, monkeypatch
):
    def die(output, name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cluster, "_remove_scratch", die)
        segment(client, little, little / "out")
    assert (little / "out/blocks").exists()
    assert segment(client, little, little / "out").num_skipped == 1
    assert not (little / "out/blocks").exists()


def test_names_that_look_like_addresses_are_names(client, little):
    (little / "a::b").mkdir()
    (little / "slide.zarr").rename(little / "a::b/slide.zarr")
    (little / "run").rename(little / "a::b/run")
    outcome = segment(client, little / "a::b", little / "c::d")
    assert outcome.num_nuclei == read_level(little / "c::d").max() > 50


def test_blocks_are_made_of_whole_chunks(client, folder, tmp_path):
    with pytest.raises(ValueError, match="700 pixels: the side must be a multiple"):
        segment(client, folder, tmp_path, side=700)


@pytest.mark.slow
def test_the_program_tells_errors_in_one_line(folder, workers, tmp_path):
    (tmp_path / "slide.zarr").mkdir()
    shutil.copytree(folder / "run", tmp_path / "run")
    run = run_program(
        tmp_path, tmp_path / "out", f"--scheduler={workers.scheduler_address}"
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'slide.zarr'}: ")


@pytest.mark.slow
def test_an_image_that_cannot_be_read_leaves_the_others(folder, workers, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    (tmp_path / "in" / "slide.zarr").symlink_to(folder / "slide.zarr")
    run = run_program(
        folder,
        tmp_path / "out",
        f"--input={tmp_path / 'in'}",
        f"--scheduler={workers.scheduler_address}",
    )
    assert run.returncode == 1 and "new nuclei" in run.stdout
    assert f"error: {tmp_path / 'in/a.png'}: " in run.stderr
    assert (tmp_path / "out/failed.csv").read_text().count("a.png") == 2
    assert len(read_table(tmp_path / "out")) > 1000


@pytest.mark.slow
def test_without_a_scheduler_processes_here_do_the_work(folder, result, tmp_path):
    run = run_program(folder, tmp_path, "--num_workers=2")
    assert run.returncode == 0, run.stderr
    assert "distributed." not in run.stderr and "scheduler.py" not in run.stderr
    assert contents(tmp_path) == contents(result[0])


@pytest.mark.slow
def test_killed_workers_change_nothing(folder, result, tmp_path):
    """Three times the process of a worker gets a SIGKILL amid its block."""
    pids = []
    with start_workers() as workers, distributed.Client(workers) as client:

        def kill(name, stage, done, total):
            if (stage, done) in (("contrast", 2), ("segmenting", 3), ("writing", 2)):
                pids.append(next(iter(client.run(os.getpid).values())))
                os.kill(pids[-1], signal.SIGKILL)

        segment(client, folder, tmp_path, tell_progress=kill)
    assert len(set(pids)) == 3
    assert contents(tmp_path) == contents(result[0])


@pytest.mark.slow
def test_a_task_that_kills_its_workers_is_told(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(block_tasks, "find_range", lambda source: os._exit(9))
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        start_workers() as workers,
        distributed.Client(workers) as client,
        pytest.raises(cluster.ClusterError, match="take smaller blocks"),
    ):
        segment(client, folder, tmp_path)
