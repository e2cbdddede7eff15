import dataclasses
import os
import random
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucseg_jax.config import DataConfig
from nucseg_jax.data import index
from nucseg_jax.data.index import DatasetError, Example
from tests.helpers import write_disc_dataset


def touch(root, *names):
    """Makes empty files: finding examples opens no image."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_index(root, *lines, encoding="utf-8"):
    (root / "index.csv").write_text("\n".join(lines) + "\n", encoding=encoding)


def ids(examples):
    return [example.id for example in examples]


def names_of(subsets):
    return {name: ids(part) for name, part in subsets.items()}


# Layouts.


def test_labels_beside_images(tmp_path):
    touch(tmp_path, "images/b.png", "images/a.TIF", "labels/a.png", "labels/b.tif")
    a, b = index.find_examples(tmp_path)
    assert a == Example(
        id="a",
        image=tmp_path / "images/a.TIF",
        truth=(tmp_path / "labels/a.png",),
        kind="labels",
        group="a",
    )
    assert b.id == b.group == "b" and b.truth == (tmp_path / "labels/b.tif",)


def test_masks_beside_images(tmp_path):
    touch(tmp_path, "images/a.jpg", "masks/a.png")
    (example,) = index.find_examples(tmp_path)
    assert example.kind == "mask" and example.truth == (tmp_path / "masks/a.png",)


def test_an_image_may_be_called_a_mask(tmp_path):
    touch(tmp_path, "images/a_mask.png", "images/a.png")
    touch(tmp_path, "masks/a_mask.png", "masks/a_masks.png")
    found = {e.id: e.truth[0].name for e in index.find_examples(tmp_path)}
    assert found == {"a_mask": "a_mask.png", "a": "a_masks.png"}


@pytest.mark.parametrize("ending", ("", "_mask", "_masks", "_label", "_labels"))
@pytest.mark.parametrize("folder", ("masks", "labels"))
def test_endings_of_truth_are_left_out_of_the_id(tmp_path, folder, ending):
    touch(tmp_path, "images/x_1.png", f"{folder}/x_1{ending}.png")
    (example,) = index.find_examples(tmp_path)
    assert example.id == "x_1" and example.truth[0].stem == f"x_1{ending}"


def test_index_carries_group_and_columns(tmp_path):
    touch(tmp_path, "images/a.png", "images/b.png", "masks/a.png", "masks/b.png")
    write_index(tmp_path, "id,group,modality", "b,g1,dark", "a,,pink")
    a, b = index.find_examples(tmp_path)
    assert (a.id, a.group, a.columns["modality"]) == ("a", "a", "pink")
    assert (b.id, b.group, b.columns["modality"]) == ("b", "g1", "dark")
    assert a.kind == "mask" and b.image == tmp_path / "images/b.png"


@pytest.mark.parametrize(
    "header", ["id,Group,Split,dye", "ID , group,split ,dye", "id,GROUP, SPLIT, dye "]
)
def test_columns_are_known_in_any_spelling(tmp_path, header):
    """Or a test set would be learned from, for a space."""
    touch(
        tmp_path,
        *(f"{folder}/{i}.png" for folder in ("images", "labels") for i in "abc"),
    )
    write_index(tmp_path, header, "a,g,train,x", "", "b,h,val,y", "c,h,test,z")
    examples = index.find_examples(tmp_path)
    assert [e.group for e in examples] == ["g", "h", "h"]
    assert [e.columns["dye"] for e in examples] == ["x", "y", "z"]
    assert names_of(index.split_examples(examples, DataConfig())) == {
        "train": ["a"],
        "val": ["b"],
        "test": ["c"],
    }


def test_columns_that_appear_twice_are_named(tmp_path):
    write_index(tmp_path, "id,split,Split", "a,train,val")
    with pytest.raises(DatasetError, match=r"columns appear twice: \['split'\]"):
        index.find_examples(tmp_path)


def test_index_with_a_byte_order_mark(tmp_path):
    touch(tmp_path, "images/a.png", "labels/a.png")
    write_index(tmp_path, "id", "a", encoding="utf-8-sig")
    assert ids(index.find_examples(tmp_path)) == ["a"]


def test_index_rows_without_truth_are_left_out(tmp_path):
    touch(tmp_path, "images/a.png", "images/b.png", "labels/b.png")
    write_index(tmp_path, "id,split", "a,train", "b,val")
    assert ids(index.find_examples(tmp_path)) == ["b"]


def test_images_beyond_the_index_are_left_out(tmp_path):
    touch(tmp_path, "images/a.png", "images/b.png", "labels/a.png", "labels/b.png")
    write_index(tmp_path, "id", "b")
    assert ids(index.find_examples(tmp_path)) == ["b"]


def test_one_mask_file_a_nucleus(tmp_path):
    touch(tmp_path, "b/images/b.png", "b/masks/2.png", "b/masks/1.png")
    touch(tmp_path, "a/images/a.png", "a/masks/9.png", "a/masks/notes.txt")
    touch(tmp_path, "other/c.png", "readme.txt")
    a, b = index.find_examples(tmp_path)
    assert (a.id, a.kind, a.truth) == ("a", "nuclei", (tmp_path / "a/masks/9.png",))
    assert b.truth == (tmp_path / "b/masks/1.png", tmp_path / "b/masks/2.png")
    assert b.image == tmp_path / "b/images/b.png" and b.group == "b"


def test_a_folder_of_masks_that_is_missing_is_named(tmp_path):
    touch(tmp_path, "a/images/a.png", "a/masks/1.png", "b/images/b.png")
    (tmp_path / "b/masks").mkdir()
    with pytest.raises(DatasetError, match=r"no truth for 1 example\(s\): b"):
        index.find_examples(tmp_path)


def test_two_images_with_masks_in_common_are_refused(tmp_path):
    touch(tmp_path, "a/images/a.png", "a/images/b.png", "a/masks/1.png")
    with pytest.raises(DatasetError, match="a/images: holds 2 images, not 1"):
        index.find_examples(tmp_path)


def test_other_files_and_hidden_ones_are_no_images(tmp_path):
    touch(tmp_path, "images/a.png", "images/.b.png", "images/Thumbs.db", "labels/a.png")
    assert ids(index.find_examples(tmp_path)) == ["a"]


# Kinds of truth.


@pytest.fixture
def both_kinds(tmp_path):
    touch(tmp_path, "images/a.png", "labels/a.png", "masks/a.png")
    return tmp_path


@pytest.mark.parametrize("with_index", (False, True))
@pytest.mark.parametrize(
    ("truth", "kind", "folder"),
    (
        ("auto", "labels", "labels"),
        ("labels", "labels", "labels"),
        ("masks", "mask", "masks"),
    ),
)
def test_truth_is_chosen(both_kinds, with_index, truth, kind, folder):
    if with_index:
        write_index(both_kinds, "id", "a")
    (example,) = index.find_examples(both_kinds, truth=truth)
    assert example.kind == kind and example.truth[0].parent.name == folder


@pytest.mark.parametrize(
    ("there", "wanted"), (("labels", "masks"), ("masks", "labels"))
)
def test_truth_that_is_not_there_is_named(tmp_path, there, wanted):
    touch(tmp_path, "images/a.png", f"{there}/a.png")
    with pytest.raises(DatasetError, match=f"{re.escape(str(tmp_path))}.*{wanted}/"):
        index.find_examples(tmp_path, truth=wanted)


# Faults.


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        index.find_examples(tmp_path / "nowhere")


def test_folder_without_examples_is_named(tmp_path):
    touch(tmp_path, "a.png", "sub/b.png")
    with pytest.raises(DatasetError, match=f"{re.escape(str(tmp_path))}: holds no"):
        index.find_examples(tmp_path)


def test_images_without_truth_are_named(tmp_path):
    touch(tmp_path, *(f"images/{n}.png" for n in range(9)), "labels/3.png")
    with pytest.raises(
        DatasetError, match=r"labels: no truth for 8 .*: 0, 1, 2, 4, 5, "
    ):
        index.find_examples(tmp_path)


def test_images_without_any_truth_folder_are_named(tmp_path):
    touch(tmp_path, "images/a.png")
    with pytest.raises(DatasetError, match="labels/ or masks/ beside images/"):
        index.find_examples(tmp_path)


def test_missing_image_of_an_index_is_named(tmp_path):
    touch(tmp_path, "images/a.png", "labels/a.png", "labels/gone.png")
    write_index(tmp_path, "id", "a", "gone")
    with pytest.raises(DatasetError, match=r"images: no image for 1 .*: gone"):
        index.find_examples(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    (
        (("name", "a"), "expected a column named id"),
        (("id",), "lists no image"),
        (("",), "lists no image"),
        (("id", '"' + "a" * 200_000), "line 2: field larger than field limit"),
    ),
)
def test_index_without_ids_is_named(tmp_path, lines, message):
    touch(tmp_path, "images/a.png", "labels/a.png")
    write_index(tmp_path, *lines)
    with pytest.raises(DatasetError, match=rf"index\.csv: {message}"):
        index.find_examples(tmp_path)


def test_index_in_another_encoding_is_named(tmp_path):
    touch(tmp_path, "images/a.png", "labels/a.png")
    write_index(tmp_path, "id,stain", "a,blaß", encoding="latin-1")
    with pytest.raises(DatasetError, match=r"index\.csv: is not text in UTF-8"):
        index.find_examples(tmp_path)


def test_repeated_ids_of_an_index_are_named(tmp_path):
    touch(tmp_path, "images/a.png", "labels/a.png")
    write_index(tmp_path, "id,split", "a,train", "a,val")
    with pytest.raises(DatasetError, match=r"index\.csv.*twice.*'a'"):
        index.find_examples(tmp_path)


@pytest.mark.parametrize(
    "clash",
    (("images/a.png", "images/a.tif"), ("labels/a.png", "labels/a_mask.png")),
)
def test_files_of_one_id_clash(tmp_path, clash):
    touch(tmp_path, "images/a.png", "labels/a.png", *clash)
    first, second = (name.split("/")[1] for name in clash)
    with pytest.raises(DatasetError, match=f"{first} and {second} clash"):
        index.find_examples(tmp_path)


# Splits.


def example(id_, group=None, **columns):
    return Example(
        id=id_, image=None, truth=(), kind="mask", group=group or id_, columns=columns
    )


def test_split_column_is_taken_by_itself():
    examples = [
        example("a", split="train"),
        example("b", split="val"),
        example("c", split="test"),
    ]
    subsets = index.split_examples(examples, DataConfig())
    assert names_of(subsets) == {"train": ["a"], "val": ["b"], "test": ["c"]}


def test_named_column_is_preferred():
    examples = [
        example("a", split="train", by_lab="val"),
        example("b", split="val", by_lab="train"),
    ]
    subsets = index.split_examples(examples, DataConfig(split="by_lab"))
    assert names_of(subsets) == {"train": ["b"], "val": ["a"], "test": []}


@pytest.mark.parametrize("alias", ("val", "valid", "validation", " VAL ", "Validation"))
def test_aliases_of_val(alias):
    examples = [example("a", split="Train"), example("b", split=alias)]
    assert ids(index.split_examples(examples, DataConfig())["val"]) == ["b"]


@pytest.mark.parametrize("value", ("holdout", ""))
def test_unknown_subset_is_named(value):
    examples = [example("a", split="train"), example("b", split=value)]
    with pytest.raises(DatasetError, match=f"column split of b holds '{value}'"):
        index.split_examples(examples, DataConfig())


def test_short_row_of_an_index_is_named(tmp_path):
    touch(tmp_path, "images/a.png", "images/b.png", "labels/a.png", "labels/b.png")
    write_index(tmp_path, "id,group,split", "a,g,train", "b,g")
    with pytest.raises(DatasetError, match="column split of b holds ''"):
        index.load_subsets(DataConfig(data_dir=str(tmp_path)))


def write_lists(folder, **lists):
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return ",".join(str(folder / f"{name}.txt") for name in lists)


ABCD = [example(name, split="train") for name in "abcd"]


def test_split_by_two_lists_leaves_the_rest_out(tmp_path):
    split = write_lists(tmp_path, one=["c", "", " a "], two=["b"])
    subsets = index.split_examples(ABCD, DataConfig(split=split))
    assert names_of(subsets) == {"train": ["c", "a"], "val": ["b"], "test": []}


def test_split_by_three_lists(tmp_path):
    split = write_lists(tmp_path, one=["a"], two=["b"], three=["d", "c"])
    subsets = index.split_examples(ABCD, DataConfig(split=split))
    assert names_of(subsets) == {"train": ["a"], "val": ["b"], "test": ["d", "c"]}


@pytest.mark.parametrize(
    ("lists", "message"),
    (
        ({"one": ["a"], "two": ["nobody"]}, r"two\.txt: there is no example 'nobody'"),
        ({"one": ["a"], "two": ["a"]}, r"two\.txt: 'a' stands in .*one\.txt already"),
        ({"one": ["a", "a"], "two": ["b"]}, r"one\.txt: 'a' stands in .*one\.txt"),
        ({name: [name] for name in "abcd"}, "names 4 files"),
    ),
)
def test_faults_of_lists_are_named(tmp_path, lists, message):
    split = write_lists(tmp_path, **lists)
    with pytest.raises(DatasetError, match=message):
        index.split_examples(ABCD, DataConfig(split=split))


@pytest.mark.parametrize("split", ("by_lab", "train.txt,val.txt", "id"))
def test_unknown_column_or_file_is_named(split):
    first = split.split(",")[0]
    with pytest.raises(DatasetError, match=f"'{first}' is neither a column .* nor a"):
        index.split_examples(ABCD, DataConfig(split=split))


groups = st.lists(st.integers(0, 12), min_size=2, max_size=40).filter(
    lambda drawn: len(set(drawn)) > 1
)


def draw(examples, **settings):
    return index.split_examples(examples, DataConfig(**settings))


@given(groups, st.floats(0.05, 0.95), st.integers(0, 5))
def test_random_split_is_disjoint_and_complete_and_keeps_groups(numbers, share, seed):
    examples = [example(f"{n:02}", f"g{group}") for n, group in enumerate(numbers)]
    subsets = draw(examples, val_fraction=share, split_seed=seed)
    train, val = subsets["train"], subsets["val"]
    assert train and val and not subsets["test"]
    assert sorted(ids(train) + ids(val)) == ids(examples)
    assert ids(train) == sorted(ids(train)) and ids(val) == sorted(ids(val))
    assert not {e.group for e in train} & {e.group for e in val}


@given(groups, st.randoms(use_true_random=False))
def test_random_split_does_not_depend_on_the_order(numbers, shuffler: random.Random):
    examples = [example(f"{n:02}", f"g{group}") for n, group in enumerate(numbers)]
    shuffled = examples.copy()
    shuffler.shuffle(shuffled)
    assert draw(examples) == draw(shuffled)


@given(st.integers(4, 60), st.floats(0.05, 0.7), st.integers(0, 3))
def test_random_split_draws_the_share_asked_for(num, share, seed):
    examples = [example(f"{n:02}") for n in range(num)]
    subsets = index.split_examples(
        examples, DataConfig(val_fraction=share, split_seed=seed)
    )
    assert len(subsets["val"]) == max(1, round(share * num))


@pytest.mark.parametrize("seed", range(6))
def test_a_group_too_large_for_the_share_is_learned_from(seed):
    """One plate, slide or patient may be most of the images."""
    names = ["large"] * 80 + [f"single {n}" for n in range(20)]
    examples = [example(f"{n:02}", group) for n, group in enumerate(names)]
    subsets = draw(examples, val_fraction=0.1, split_seed=seed)
    assert [len(subsets[name]) for name in ("train", "val")] == [90, 10]


def test_of_groups_that_are_all_too_large_the_smallest_is_drawn():
    names = ["large"] * 60 + ["small"] * 40
    examples = [example(f"{n:02}", group) for n, group in enumerate(names)]
    for seed in range(3):
        subsets = draw(examples, val_fraction=0.1, split_seed=seed)
        assert {e.group for e in subsets["val"]} == {"small"}


@pytest.mark.parametrize("seed", range(4))
def test_one_group_is_left_to_learn_from(seed):
    examples = [example(f"{n}", "ab"[n // 5]) for n in range(10)]
    subsets = draw(examples, val_fraction=0.8, split_seed=seed)
    assert [len(subsets[name]) for name in ("train", "val")] == [5, 5]


def test_one_group_alone_is_not_divided():
    subsets = draw([example("1", "a"), example("2", "a")])
    assert ids(subsets["train"]) == ["1", "2"]
    with pytest.raises(DatasetError, match="no val images .* all are of one group"):
        index.get_subset(DataConfig(), subsets, "val")


def test_names_that_are_no_utf8_can_be_drawn():
    drawn = draw([example(os.fsdecode(b"caf\xe9")), example("b")], val_fraction=0.5)
    assert {len(drawn["train"]), len(drawn["val"])} == {1}


def test_random_split_follows_its_seed():
    examples = [example(f"{n:02}") for n in range(20)]
    drawn = {tuple(ids(draw(examples, split_seed=seed)["val"])) for seed in range(8)}
    assert len(drawn) == 8


def test_random_split_is_the_same_on_every_machine():
    examples = [example(f"{n:02}") for n in range(10)]
    assert ids(draw(examples, val_fraction=0.3)["val"]) == ["01", "04", "07"]


def test_an_example_more_moves_at_most_one():
    examples = [example(f"{n:03}") for n in range(100)]
    before = set(ids(draw(examples)["val"]))
    after = set(ids(draw([*examples, example("new")])["val"]))
    assert len(before - after) <= 1


def test_subsets_of_a_folder(tmp_path):
    for n in range(5):
        touch(tmp_path, f"images/{n}.png", f"labels/{n}.png", f"masks/{n}.png")
    config = DataConfig(data_dir=str(tmp_path), truth="masks", val_fraction=0.4)
    subsets = index.load_subsets(config)
    assert len(subsets["train"]) == 3 and len(subsets["val"]) == 2
    assert {e.kind for part in subsets.values() for e in part} == {"mask"}


@pytest.mark.parametrize(
    "header, config, how",
    [
        ("id,fold", DataConfig(split="fold"), "split by fold"),
        ("id,split", DataConfig(), "split by the column split"),
        ("id,other", DataConfig(split_seed=3), "drawn at random with --split_seed=3"),
    ],
)
def test_description_tells_what_divided_the_examples(tmp_path, header, config, how):
    touch(
        tmp_path,
        *(f"{folder}/{x}.png" for folder in ("images", "masks") for x in "abc"),
    )
    write_index(tmp_path, header, "a,train", "b,val", "c,train")
    config = dataclasses.replace(config, data_dir=str(tmp_path))
    described = index.describe_subsets(config, index.load_subsets(config))
    assert described == f"data: {tmp_path} (2 train, 1 val; {how})"


def test_fingerprint_is_of_contents_and_ids_not_of_places(tmp_path):
    write_disc_dataset(tmp_path / "a", num_images=3, side=24)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (index.find_examples(tmp_path / name) for name in "ab")
    whole = index.fingerprint(first)
    assert whole == index.fingerprint(second)
    assert whole != index.fingerprint(first[:2])
    path = tmp_path / "b" / "labels" / "001.png"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert whole != index.fingerprint(second)


def test_a_subset_that_is_empty_is_named(tmp_path):
    touch(
        tmp_path, *(f"{folder}/{x}.png" for folder in ("images", "masks") for x in "ab")
    )
    write_index(tmp_path, "id,fold", "a,train", "b,val")
    config = DataConfig(data_dir=str(tmp_path), split="fold")
    subsets = index.load_subsets(config)
    assert [example.id for example in index.get_subset(config, subsets, "val")] == ["b"]
    with pytest.raises(DatasetError, match=r"has no test images \(split by fold\)"):
        index.get_subset(config, subsets, "test")


@pytest.mark.parametrize("value", ["test", "val"])
def test_a_folder_that_is_for_scoring_alone_needs_no_other_subset(tmp_path, value):
    names = [f"{folder}/{x}.png" for folder in ("images", "masks") for x in "ab"]
    touch(tmp_path, *names)
    write_index(tmp_path, "id,fold", f"a,{value}", f"b,{value}")
    config = DataConfig(data_dir=str(tmp_path), split="fold")
    subsets = index.load_subsets(config)
    assert ids(index.get_subset(config, subsets, value)) == ["a", "b"]
    assert index.describe_subsets(config, subsets).endswith(
        f"(2 {value}; split by fold)"
    )


def test_all_images_of_a_folder_are_a_subset(tmp_path):
    touch(tmp_path, *(f"{d}/{n}.png" for d in ("images", "masks") for n in range(7)))
    config = DataConfig(data_dir=str(tmp_path))
    found = index.get_subset(config, index.load_subsets(config), "all")
    assert sorted(ids(found)) == [str(n) for n in range(7)]


def test_blanks_around_values_of_an_index_mean_nothing(tmp_path):
    touch(tmp_path, *(f"{d}/{x}.png" for d in ("images", "masks") for x in "ab"))
    write_index(tmp_path, "id,group,modality", "a,patient ,gray ", "b, patient,gray")
    first, second = index.find_examples(tmp_path)
    assert first.group == second.group and first.columns == second.columns


def test_copies_of_images_are_found_by_their_contents(tmp_path):
    write_disc_dataset(tmp_path, num_images=4, side=24)
    first = index.find_examples(tmp_path)
    shutil.copy(first[0].image, first[3].image)
    assert index.find_copies(first[2:], first[:2]) == [first[3]]
    assert index.find_copies(first[:2], []) == []
