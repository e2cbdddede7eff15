import pathlib

import pytest

from nucseg_jax.data.index import DatasetError, Example
from nucseg_jax.data.sampling import count_repeats


def examples(values, column="modality"):
    path = pathlib.Path("a.png")
    return [
        Example(f"{k}", path, (path,), "labels", f"{k}", columns={column: value})
        for k, value in enumerate(values)
    ]


def test_without_a_column_each_comes_once():
    assert count_repeats(examples("aab"), "") == [1, 1, 1]


@pytest.mark.parametrize("rare, expected", [(1, 10), (4, 5), (25, 2), (100, 1)])
def test_rare_values_come_by_the_root_of_their_rarity(rare, expected):
    repeats = count_repeats(examples("c" * 100 + "r" * rare), "modality")
    assert repeats == [1] * 100 + [expected] * rare


def test_a_missing_column_is_named():
    with pytest.raises(DatasetError, match="0 has no column 'stain'"):
        count_repeats(examples("ab"), "stain")
