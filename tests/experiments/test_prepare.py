"""From the Data Science Bowl's folders to label images and an index."""

import csv
import os
import pathlib
import shutil
import zipfile

import numpy as np
import PIL.Image
import pytest

from nucseg_jax.data.images import ImageError, read_mask
from nucseg_jax.data.index import SUBSETS, DatasetError, find_examples
from nucseg_jax.data.truth import read_pair

SHAPE = (9, 12)
SPLITS = pathlib.Path(__file__).parents[2] / "experiments" / "dsb2018_splits.csv"


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)


def make_nuclei(count):
    """`count` masks of 2 x 2 pixels, side by side, touching."""
    masks = np.zeros((count, *SHAPE), np.uint8)
    for index, mask in enumerate(masks):
        mask[3:5, 2 * index : 2 * index + 2] = 255
    return masks


@pytest.fixture
def kaggle(tmp_path):
    """A folder of three images with 2, 1 and 3 nuclei, and one without masks."""
    root = tmp_path / "kaggle" / "stage1_train"
    rng = np.random.default_rng(0)
    for name, count in {"c0": 2, "a1": 1, "b2": 3, "d3": 0}.items():
        image = rng.integers(0, 256, (*SHAPE, 4), np.uint8)
        save(root / name / "images" / f"{name}.png", image)
        for index, mask in enumerate(make_nuclei(count)):
            save(root / name / "masks" / f"{index:02}.png", mask)
    return root


def pack(folder, path, *, within="", extra=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, str(within / file.relative_to(folder)))
        for name in extra:
            archive.writestr(name, b"intruder")
    return path


def check_result(output, kaggle):
    assert sorted(path.name for path in output.iterdir()) == [
        "images",
        "index.csv",
        "labels",
        "masks",
    ]
    with open(output / "index.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["id", "height", "width", "nuclei"],
        ["a1", "9", "12", "1"],
        ["b2", "9", "12", "3"],
        ["c0", "9", "12", "2"],
    ]
    examples = find_examples(output)
    assert [example.id for example in examples] == ["a1", "b2", "c0"]
    for example, count in zip(examples, (1, 3, 2), strict=True):
        _, labels = read_pair(example)
        expected = np.zeros(SHAPE, np.int32)
        for label, mask in enumerate(make_nuclei(count), start=1):
            expected[mask > 0] = label
        np.testing.assert_array_equal(labels, expected)
        mask = read_mask(output / "masks" / f"{example.id}.png")
        np.testing.assert_array_equal(mask, expected > 0)
        source = kaggle / example.id / "images" / example.image.name
        assert example.image.read_bytes() == source.read_bytes()


@pytest.fixture
def prepare(load_program, capsys):
    """Runs the program; returns what it printed."""

    def run(source, output, *more):
        arguments = (f"--input={source}", f"--output={output}", *more)
        program = load_program("prepare", *arguments)
        program.main()
        return capsys.readouterr().out

    return run


def test_a_folder_is_prepared(kaggle, prepare, tmp_path):
    text = prepare(kaggle, tmp_path / "new" / "out")
    check_result(tmp_path / "new" / "out", kaggle)
    assert text == f"3 images -> {tmp_path / 'new' / 'out'}\n"
    assert os.listdir(tmp_path / "new") == ["out"]


@pytest.mark.parametrize("within", ["", "stage1_train"])
@pytest.mark.parametrize("extra", [(), ("__MACOSX/a1/._images",), ("readme.txt",)])
def test_a_zip_file_is_prepared(kaggle, prepare, tmp_path, within, extra):
    source = pack(
        kaggle, tmp_path / "train.zip", within=pathlib.Path(within), extra=extra
    )
    prepare(source, tmp_path / "new" / "out")
    check_result(tmp_path / "new" / "out", kaggle)
    assert os.listdir(tmp_path / "new") == ["out"]


def test_a_zip_file_of_one_image_is_no_wrapping_folder(kaggle, prepare, tmp_path):
    source = pack(kaggle / "b2", tmp_path / "one.zip", within=pathlib.Path("b2"))
    assert prepare(source, tmp_path / "out").startswith("1 images")


@pytest.mark.parametrize("name", ["../../escaped", "/escaped", "a/../../../escaped"])
def test_members_of_a_zip_file_cannot_escape(kaggle, prepare, tmp_path, name):
    deep = tmp_path / "one" / "two"
    name = f"{tmp_path}{name}" if name.startswith("/") else name
    source = pack(kaggle, tmp_path / "a.zip", within=pathlib.Path(), extra=[name])
    prepare(source, deep / "out")
    check_result(deep / "out", kaggle)
    assert not list(tmp_path.rglob("escaped"))


def test_a_zip_file_that_would_fill_the_disk_is_refused(
    kaggle, prepare, load_program, monkeypatch, tmp_path
):
    source = pack(kaggle, tmp_path / "a.zip", within=pathlib.Path())
    program = load_program("prepare", "--input=a", "--output=b")
    monkeypatch.setattr(program, "_MAX_UNPACKED_BYTES", 100)
    with pytest.raises(ValueError, match="would unpack to"):
        prepare(source, tmp_path / "new" / "out")
    assert os.listdir(tmp_path / "new") == []


def test_a_damaged_zip_file_is_a_clear_error(kaggle, prepare, tmp_path):
    source = pack(kaggle, tmp_path / "a.zip", within=pathlib.Path())
    data = bytearray(source.read_bytes())
    data[60:200] = bytes(140)
    source.write_bytes(data)
    with pytest.raises(ValueError, match="a.zip: is damaged"):
        prepare(source, tmp_path / "new" / "out")
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize("content", [None, b"", b"no zip file"])
def test_what_is_no_folder_and_no_zip_file_is_refused(prepare, tmp_path, content):
    source = tmp_path / "a.zip"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(ValueError, match="a.zip: is neither a folder nor a zip file"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_masks_is_refused(prepare, tmp_path):
    save(tmp_path / "kaggle" / "a" / "images" / "a.png", np.zeros(SHAPE, np.uint8))
    with pytest.raises(DatasetError, match="holds no images with their truth"):
        prepare(tmp_path / "kaggle", tmp_path / "new" / "out")
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize("is_corrected", [False, True])
def test_binary_masks_are_refused(kaggle, prepare, tmp_path, is_corrected):
    """Each would become a label image of one nucleus."""
    for folder in ("images", "masks"):
        save(tmp_path / "pairs" / folder / "b2.png", np.zeros(SHAPE, np.uint8))
    pairs = tmp_path / "pairs"
    source, more = (kaggle, [f"--corrected={pairs}"]) if is_corrected else (pairs, [])
    with pytest.raises(ValueError, match=r"masks/b2\.png: is a binary mask"):
        prepare(source, tmp_path / "new/out", *more)
    assert os.listdir(tmp_path / "new") == []


def test_an_output_that_is_not_empty_is_left_alone(kaggle, prepare, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="exists and is not empty"):
        prepare(kaggle, output)
    assert os.listdir(output) == ["mine.txt"]


def test_an_empty_output_folder_is_used(kaggle, prepare, tmp_path):
    (tmp_path / "out").mkdir()
    prepare(kaggle, tmp_path / "out")
    check_result(tmp_path / "out", kaggle)


@pytest.mark.parametrize("damage", ["cut", "size"])
def test_a_failure_in_the_middle_leaves_nothing(kaggle, prepare, tmp_path, damage):
    path = kaggle / "b2" / "masks" / "01.png"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:40])
    else:
        save(path, np.zeros((4, 4), np.uint8))
    with pytest.raises(ImageError, match="01.png"):
        prepare(kaggle, tmp_path / "new" / "out")
    assert os.listdir(tmp_path / "new") == []
    assert len(list(kaggle.rglob("*.png"))) == 4 + 6


def test_labels_come_from_the_corrected_annotation_and_masks_do_not(
    kaggle, prepare, tmp_path
):
    """As in the protocols; an image that was dropped there has no labels."""
    better = tmp_path / "fixes"
    shutil.copytree(kaggle, better)
    shutil.rmtree(better / "c0")
    (better / "b2" / "masks" / "02.png").unlink()
    prepare(kaggle, tmp_path / "out", f"--corrected={better}")
    found = find_examples(tmp_path / "out")
    counts = {example.id: read_pair(example)[1].max() for example in found}
    assert counts == {"a1": 1, "b2": 2}
    masks = find_examples(tmp_path / "out", truth="masks")
    assert [example.id for example in masks] == ["a1", "b2", "c0"]
    assert (read_pair(masks[1])[1] > 0).sum() == 3 * 4


def test_images_that_the_corrected_annotation_lacks_are_told(kaggle, prepare, tmp_path):
    better = tmp_path / "fixes"
    shutil.copytree(kaggle, better)
    shutil.rmtree(better / "c0")
    told = prepare(kaggle, tmp_path / "out", f"--corrected={better}")
    assert "annotation lacks them, and not learned from: c0\n" in told
    for name in ("a1", "b2"):
        (better / name).rename(better / f"other_{name}")
        (better / f"other_{name}/images/{name}.png").rename(
            better / f"other_{name}/images/other_{name}.png"
        )
    with pytest.raises(ValueError, match="the better annotation has none of these"):
        prepare(kaggle, tmp_path / "none", f"--corrected={better}")
    assert not (tmp_path / "none").exists()


def test_a_corrected_annotation_of_other_images_is_refused(kaggle, prepare, tmp_path):
    better = tmp_path / "fixes"
    for folder, name in (("images", "a1.png"), ("masks", "0.png")):
        save(better / "a1" / folder / name, np.full((5, 5), 255, np.uint8))
    with pytest.raises(ValueError, match=r"a1\.png: is \(5, 5\), not \(9, 12\)"):
        prepare(kaggle, tmp_path / "out", f"--corrected={better}")
    assert not (tmp_path / "out").exists()


def test_images_of_the_bowl_get_the_splits_of_the_protocols(prepare, tmp_path):
    with open(SPLITS, newline="") as file:
        known = list(csv.DictReader(file))
    for row in known[:5]:
        for folder in ("images", "masks"):
            path = tmp_path / "kaggle" / row["id"] / folder / f"{row['id']}.png"
            save(path, np.full(SHAPE, 255, np.uint8))
    prepare(tmp_path / "kaggle", tmp_path / "out")
    with open(tmp_path / "out" / "index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = [row | {"height": "9", "width": "12", "nuclei": "1"} for row in known[:5]]
    assert rows == wanted


def test_the_splits_are_those_of_the_protocols():
    """No group of tiles is divided by the split that claims generalisation."""
    with open(SPLITS, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["id"] for row in rows}) == len(rows) == 670
    sizes = {
        name: [sum(row[name] == part for row in rows) for part in SUBSETS]
        for name in ("original_split", "random_split", "grouped_split")
    }
    assert sizes == {
        "original_split": [500, 170, 0],
        "random_split": [536, 67, 67],
        "grouped_split": [530, 71, 69],
    }
    parts = {(row["group"], row["grouped_split"]) for row in rows}
    assert len(parts) == len({group for group, _ in parts})
