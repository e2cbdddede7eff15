"""Many files: what is written, what is skipped, what is told."""

import contextlib
import csv
import json
import os
import signal
import threading
import time

import numpy as np
import PIL.Image
import pytest
import tifffile

from nucseg_jax.config import DataConfig, DecodingConfig
from nucseg_jax.data.images import MAX_PIXELS, read_image
from nucseg_jax.inference import preparation
from nucseg_jax.inference.jobs import Options, find_jobs
from nucseg_jax.inference.run import segment_files
from nucseg_jax.inference.segmenter import Segmenter
from tests.data.files import write_film, write_ome_parts, write_ome_zarr
from tests.helpers import disc_image


class RedNetwork:
    """Predicts the red channel; counts the images that it was given."""

    def __init__(self):
        self.calls = 0
        self.shapes = []

    def __call__(self, images, interior=None):
        self.calls += 1
        self.shapes.append(images.shape)
        red = images[..., :1]
        return red if interior is None else interior.cut(red)


@pytest.fixture
def network():
    return RedNetwork()


@pytest.fixture
def segmenter(network):
    config = DataConfig(framing="crop", clahe_clip_limit=0)
    decoding = DecodingConfig(method="components", min_area=0, max_hole=0)
    return Segmenter(network, config, decoding=decoding, depth=2)


def options(**changes):
    defaults = {"save": ("labels", "table"), "max_pixels": MAX_PIXELS}
    return Options(**(defaults | changes))


@pytest.fixture
def folder(tmp_path):
    """Three images of three sizes and kinds, and one that is damaged."""
    root = tmp_path / "images"
    root.mkdir()
    sizes = {"a.png": (20, 31), "b b.bmp": (40, 24), "sub/ä.tif": (17, 48)}
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        gray = disc_image(48, seed=seed)[0][:height, :width]
        path = root / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith(".tif"):
            tifffile.imwrite(path, gray)
        else:
            PIL.Image.fromarray(gray).save(path)
    (root / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return root


def run(folder, segmenter, output, **changes):
    return list(
        segment_files(find_jobs(folder).jobs, segmenter, output, options(**changes))
    )


def test_every_good_file_is_done_and_every_bad_one_told(folder, segmenter, tmp_path):
    outcomes = run(folder, segmenter, tmp_path / "out")
    assert [o.job.relative.as_posix() for o in outcomes] == [
        "a.png",
        "b b.bmp",
        "bad.png",
        "sub/ä.tif",
    ]
    (bad,) = [o for o in outcomes if o.error]
    assert "bad.png" in bad.error and bad.num_planes == 0
    for outcome in outcomes:
        if outcome is bad:
            continue
        name = outcome.job.name
        labels = tifffile.imread(tmp_path / "out/labels" / f"{name}.tif")
        image = read_image(outcome.job.image)
        np.testing.assert_array_equal(labels > 0, np.round(image[..., 0] * 255) >= 128)
        assert labels.max() == outcome.num_nuclei > 0
        with open(tmp_path / "out/tables" / f"{name}.csv", newline="") as file:
            assert len(list(csv.DictReader(file))) == outcome.num_nuclei


def test_finished_files_are_skipped(folder, segmenter, network, tmp_path):
    run(folder, segmenter, tmp_path / "out")
    calls = network.calls
    again = run(folder, segmenter, tmp_path / "out")
    assert network.calls == calls
    assert [o.num_skipped for o in again] == [1, 1, 0, 1]


def test_a_missing_product_and_a_changed_image_are_made_anew(
    folder, segmenter, network, tmp_path
):
    out = tmp_path / "out"
    run(folder, segmenter, out)
    (out / "labels/a.tif").unlink()
    later = (out / "tables/b b.json").stat().st_mtime + 10
    os.utime(folder / "b b.bmp", (later, later))
    again = run(folder, segmenter, out)
    assert [o.num_planes for o in again] == [1, 1, 0, 0]
    assert (out / "labels/a.tif").is_file()


def test_results_of_one_folder_are_never_taken_for_those_of_another(
    segmenter, tmp_path
):
    """Microscopes number their files anew every day."""
    out = tmp_path / "out"
    for seed, day in enumerate(("day 1", "day 2")):
        (tmp_path / day).mkdir()
        gray, _ = disc_image(48, seed=seed, num_discs=seed + 2)
        PIL.Image.fromarray(gray).save(tmp_path / day / "image_001.png")
    (first,) = run(tmp_path / "day 1", segmenter, out)
    before = (out / "labels/image_001.tif").read_bytes()
    (second,) = run(tmp_path / "day 2", segmenter, out)
    assert first.num_planes == 1 and not second.num_planes and not second.num_skipped
    assert "day 1/image_001.png under the same name" in second.error
    assert "another --output" in second.error
    assert (out / "labels/image_001.tif").read_bytes() == before


def test_folders_that_are_named_from_inside_are_told_apart(
    segmenter, tmp_path, monkeypatch
):
    for seed, day in enumerate(("day 1", "day 2")):
        (tmp_path / day).mkdir()
        gray, _ = disc_image(48, seed=seed, num_discs=seed + 2)
        PIL.Image.fromarray(gray).save(tmp_path / day / "a.png")
        monkeypatch.chdir(tmp_path / day)
        (outcome,) = run(".", segmenter, tmp_path / "out")
    assert "day 1/a.png under the same name" in outcome.error
    monkeypatch.chdir(tmp_path)
    os.utime(tmp_path / "day 1/a.png", (0, 0))
    (again,) = run("day 1", segmenter, tmp_path / "out")
    assert again.num_planes == 1 and not again.error


def test_links_to_files_are_their_own_images(segmenter, tmp_path):
    """Data stores name files by their contents, and link to them."""
    for folder in ("store", "images"):
        (tmp_path / folder).mkdir()
    for number in (1, 2):
        gray, _ = disc_image(48, seed=number)
        tifffile.imwrite(tmp_path / f"store/{number}.tif", gray)
        link = tmp_path / f"images/{3 - number}.tif"
        link.symlink_to(tmp_path / f"store/{number}.tif")
    outcomes = run(tmp_path / "images", segmenter, tmp_path / "out")
    assert [(o.num_planes, o.error) for o in outcomes] == [(1, ""), (1, "")]


def test_one_part_that_is_linked_alone_is_not_left_out(segmenter, tmp_path):
    for folder in ("store", "images"):
        (tmp_path / folder).mkdir()
    gray = np.stack([disc_image(48, seed=seed)[0] for seed in range(2)])
    paths = write_ome_parts(tmp_path / "store", gray.astype(np.uint16))
    (tmp_path / "images/b.tif").symlink_to(paths[1])
    (outcome,) = run(tmp_path / "images", segmenter, tmp_path / "out")
    assert (outcome.num_planes, outcome.num_elsewhere) == (2, 0)


@pytest.mark.parametrize("has_master", [False, True])
def test_parts_of_one_image_are_segmented_once(segmenter, tmp_path, has_master):
    (tmp_path / "images").mkdir()
    gray = np.stack([disc_image(48, seed=seed)[0] for seed in range(3)])
    paths = write_ome_parts(
        tmp_path / "images", gray.astype(np.uint16), has_master=has_master
    )
    outcomes = run(tmp_path / "images", segmenter, tmp_path / "out")
    assert [(o.num_planes, o.num_elsewhere) for o in outcomes] == [
        (3, 0),
        (0, 3),
        (0, 3),
    ]
    assert len(list((tmp_path / "out/labels").iterdir())) == 3
    os.utime(paths[2], (0, 0))
    first, *_ = run(tmp_path / "images", segmenter, tmp_path / "out")
    assert first.num_planes == 3 and not first.num_skipped
    (alone,) = run(paths[1], segmenter, tmp_path / "alone")
    assert alone.num_planes == 3


def test_images_may_move_and_stay_finished(folder, segmenter, network, tmp_path):
    run(folder, segmenter, tmp_path / "out")
    calls = network.calls
    moved = folder.rename(tmp_path / "elsewhere")
    outcomes = run(moved, segmenter, tmp_path / "out")
    assert sum(outcome.num_skipped for outcome in outcomes) == 3
    assert network.calls == calls


def test_a_changed_chunk_of_an_ome_zarr_is_noticed(segmenter, tmp_path):
    gray, _ = disc_image(48, seed=0)
    image = write_ome_zarr(tmp_path / "in/a.zarr", gray, "yx", chunks=(16, 16))
    out = tmp_path / "out"
    assert [o.num_planes for o in run(tmp_path / "in", segmenter, out)] == [1]
    assert [o.num_planes for o in run(tmp_path / "in", segmenter, out)] == [0]
    chunk = max(path for path in image.rglob("*") if path.is_file())
    # The second time by one of an older copy.
    for seconds in (10, -1000):
        changed = chunk.stat().st_mtime + seconds
        os.utime(chunk, (changed, changed))
        assert [o.num_planes for o in run(tmp_path / "in", segmenter, out)] == [1]


@pytest.mark.parametrize("num_seen", [0, 1])
def test_a_file_that_changes_meanwhile_is_not_taken_for_finished(
    num_seen, segmenter, tmp_path
):
    """As one that a microscope still writes; neither are the frames before."""
    path, out, seen = tmp_path / "film.tif", tmp_path / "out", []
    write_film(path, seed=0)

    @contextlib.contextmanager
    def watch(info):
        seen.append(info.name)
        yield lambda done, total: None
        if len(seen) == num_seen + 1:
            os.utime(path, (0, 0))

    jobs = find_jobs(path).jobs
    (outcome,) = segment_files(jobs, segmenter, out, options(), watch=watch)
    assert outcome.error == f"{path}: changed while it was read; run again"
    assert outcome.num_planes == outcome.num_nuclei == 0
    assert not list(out.glob("tables/*.json"))
    (outcome,) = run(path, segmenter, out)
    assert outcome.num_planes == 3 and not outcome.error


def test_a_file_that_changes_while_a_part_of_it_is_read_loses_what_was_found_before(
    segmenter, tmp_path
):
    path, out = tmp_path / "film.tif", tmp_path / "out"
    write_film(path, seed=0)
    run(path, segmenter, out)
    (out / "tables/film_t002.json").unlink()

    @contextlib.contextmanager
    def watch(info):
        yield lambda done, total: None
        os.utime(path, (0, 0))

    jobs = find_jobs(path).jobs
    (outcome,) = segment_files(jobs, segmenter, out, options(), watch=watch)
    assert "changed while it was read" in outcome.error
    assert outcome.num_skipped == outcome.num_retired == 2
    assert not list(out.glob("tables/*.json"))


def test_another_product_is_added_to_finished_files(folder, segmenter, tmp_path):
    run(folder, segmenter, tmp_path / "out")
    again = run(folder, segmenter, tmp_path / "out", save=("labels", "table", "mask"))
    assert [o.num_planes for o in again] == [1, 1, 0, 1]
    assert (tmp_path / "out/masks/a.png").is_file()


def test_the_frames_of_a_stack_are_images_of_their_own(segmenter, tmp_path):
    frames = np.stack([disc_image(32, seed=k)[0] for k in range(3)])
    path = tmp_path / "film.tif"
    tifffile.imwrite(path, frames, imagej=True, metadata={"axes": "TYX"})
    (outcome,) = run(path, segmenter, tmp_path / "out")
    assert outcome.num_planes == 3 and not outcome.error
    written = sorted(p.name for p in (tmp_path / "out/labels").iterdir())
    assert written == ["film_t000.tif", "film_t001.tif", "film_t002.tif"]
    labels = tifffile.imread(tmp_path / "out/labels/film_t001.tif")
    np.testing.assert_array_equal(labels > 0, frames[1] >= 128)


@pytest.mark.parametrize(("num_damaged", "more"), [(1, ""), (2, "; and 1 more of its")])
def test_a_damaged_page_leaves_the_others_of_a_stack(
    num_damaged, more, segmenter, tmp_path
):
    path, out = tmp_path / "film.tif", tmp_path / "out"
    write_film(path, seed=0)
    run(path, segmenter, out)
    write_film(path, seed=9, num_damaged=num_damaged)
    (outcome,) = run(path, segmenter, out)
    assert f"{tmp_path}/film.tif t=1: cannot be read" in outcome.error
    assert more in outcome.error and ("more" in outcome.error) == bool(more)
    assert outcome.num_planes == 3 - num_damaged
    # The old results of what is damaged now count no more; the new ones do.
    assert outcome.num_retired == num_damaged
    (again,) = run(path, segmenter, out)
    assert again.error == outcome.error
    assert again.num_skipped == 3 - num_damaged and again.num_planes == 0


def test_an_ome_tiff_in_parts_is_the_same_by_any_path(segmenter, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    gray = np.stack([disc_image(32, seed=k)[0] for k in range(2)])
    write_ome_parts(tmp_path / "in", gray.astype(np.uint16))
    (tmp_path / "link").symlink_to(tmp_path / "in")
    first = run(tmp_path / "in", segmenter, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    for source in ("in", "link"):
        again = run(source, segmenter, tmp_path / "out")
        assert sum(o.num_planes for o in again) == 0
        assert sum(o.num_skipped for o in again) == sum(o.num_planes for o in first)


def test_results_that_would_share_a_name_are_refused(segmenter, tmp_path):
    frames = np.stack([disc_image(32, seed=k)[0] for k in range(2)])
    (tmp_path / "in").mkdir()
    tifffile.imwrite(
        tmp_path / "in/film.tif", frames, imagej=True, metadata={"axes": "TYX"}
    )
    PIL.Image.fromarray(frames[0]).save(tmp_path / "in/film_t001.png")
    outcomes = run(tmp_path / "in", segmenter, tmp_path / "out")
    (error,) = [o.error for o in outcomes if o.error]
    assert "film_t001" in error and "rename one of the files" in error


def test_an_output_that_cannot_be_written_ends_the_run(folder, segmenter, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "labels").write_text("a file where a folder is wanted")
    with pytest.raises(OSError, match="labels"):
        run(folder, segmenter, out)
    assert not list(out.rglob("*.tmp"))


def test_few_files_are_open_ahead_of_the_results_taken(segmenter, network, tmp_path):
    root = tmp_path / "many"
    root.mkdir()
    for k in range(30):
        PIL.Image.fromarray(disc_image(16, seed=k)[0]).save(root / f"{k:02}.png")
    outcomes = segment_files(
        find_jobs(root).jobs, segmenter, tmp_path / "out", options()
    )
    next(outcomes)
    outcomes.close()
    assert network.calls < 10


def test_a_name_too_long_for_results_is_told_and_the_rest_done(
    folder, segmenter, tmp_path
):
    (folder / "a.png").rename(folder / f"{'x' * 251}.png")
    outcomes = run(folder, segmenter, tmp_path / "out")
    (error,) = [o.error for o in outcomes if "xxx" in o.error]
    assert "give it a shorter name" in error
    assert sum(o.num_planes for o in outcomes) == 2
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.fixture
def heeds_sigint():
    """Programs that a shell starts in the background are told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_sigint")
def test_a_run_that_is_left_does_not_finish_the_image_in_work(network, tmp_path):
    """As Ctrl-C leaves it, while a large image has hours to go."""
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, np.zeros((4000, 600), np.uint8), tile=(64, 64))
    config = DataConfig(framing="crop", clahe_clip_limit=0)
    segmenter = Segmenter(network, config, depth=2, tile=64)
    told, first = [], threading.Event()

    def watch(info):
        def tell(done, total):
            told.append((done, total))
            first.set()
            time.sleep(0.01)

        return contextlib.nullcontext(tell)

    def interrupt():
        first.wait()
        time.sleep(0.5)  # The main thread starts others; then it waits for them.
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    outcomes = segment_files(
        find_jobs(path).jobs, segmenter, tmp_path / "out", options(), watch=watch
    )
    with pytest.raises(KeyboardInterrupt):
        list(outcomes)
    done, total = told[-1]
    assert done < total / 2
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


class Watcher:
    """Writes down what it is told of each plane, and when work on it ends."""

    def __init__(self):
        self.told = []

    @contextlib.contextmanager
    def __call__(self, info):
        try:
            yield lambda done, total: self.told.append((info.name, done, total))
        finally:
            self.told.append(f"{info.name} left")


def watch(path, segmenter, output):
    watcher, jobs = Watcher(), find_jobs(path).jobs
    outcomes = segment_files(jobs, segmenter, output, options(), watch=watcher)
    return [outcome.error for outcome in outcomes], watcher.told


def test_tiles_are_told_and_then_the_end_of_the_plane(folder, segmenter, tmp_path):
    errors, told = watch(folder / "a.png", segmenter, tmp_path / "out")
    assert errors == [""]
    assert told == [("a.png", 0, 1), ("a.png", 1, 1), "a.png left"]
    # What is finished is not watched.
    assert watch(folder / "a.png", segmenter, tmp_path / "out") == ([""], [])


def test_a_plane_that_fails_is_left_too(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "MAX_PIXELS", 10)
    resizing = Segmenter(RedNetwork(), DataConfig(framing="resize", size=32))
    (error,), told = watch(folder / "a.png", resizing, tmp_path / "out")
    assert "too many for this network" in error
    assert told == ["a.png left"]


@pytest.mark.parametrize(
    ("channel", "expected"), [(None, "blue"), ("red,green,blue", "red,green,blue")]
)
def test_one_hue_is_seen_in_gray_unless_colours_are_asked_for(
    segmenter, tmp_path, channel, expected
):
    gray = disc_image(96, seed=1)[0]
    blue = np.stack([0 * gray, 0 * gray, gray], axis=-1)
    PIL.Image.fromarray(blue).save(tmp_path / "a.png")
    run(tmp_path / "a.png", segmenter, tmp_path / "out", channel=channel)
    summary = json.loads((tmp_path / "out/tables/a.json").read_text())
    assert summary["channel"] == expected
    # The network predicts what it sees in red.
    assert (summary["count"] > 0) == (channel is None)


def test_pixel_size_and_scale_are_passed_on(segmenter, network, tmp_path):
    PIL.Image.fromarray(disc_image(100, seed=1)[0]).save(tmp_path / "a.png")
    run(tmp_path / "a.png", segmenter, tmp_path / "out", pixel_size=0.5, scale=0.5)
    summary = json.loads((tmp_path / "out/tables/a.json").read_text())
    assert summary["pixel_size"] == 0.5 and summary["unit"] == "um"
    assert summary["scale"] == 0.5
    assert network.shapes[0][1:3] == (64, 64)  # 50, padded as tiles are.
    run(tmp_path / "a.png", segmenter, tmp_path / "whole", pixel_size=0.5)
    assert network.shapes[-1][1:3] == (128, 128)
