"""The label pyramid, read back by zarr."""

import os

import numpy as np
import pytest
import zarr

from nucseg_jax.inference.outputs import labels_zarr
from nucseg_jax.inference.outputs.labels_zarr import LabelsZarrWriter


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(labels_zarr, "CHUNK", 16)


def write(path, plane, heights=()):
    with LabelsZarrWriter(path, plane.info) as writer:
        plane.feed(writer, heights=heights)
    assert os.listdir(path.parent) == [path.name]
    return zarr.open_group(str(path), mode="r")


@pytest.mark.parametrize("heights", [(), (1, 5, 31), (16, 16), (0, 69)])
def test_every_level_takes_every_second_pixel_of_the_one_before(
    tmp_path, plane, heights
):
    group = write(tmp_path / "a.zarr", plane, heights)
    expected = plane.labels
    for level in range(4):
        array = group[str(level)]
        assert array.dtype == np.uint32 and array.chunks == (16, 16)
        np.testing.assert_array_equal(array[:], expected)
        expected = expected[::2, ::2]
    assert len(list(group.array_keys())) == 4
    assert max(group["3"].shape) <= 16 < max(group["2"].shape)


def test_it_is_ome_zarr_0_4_on_zarr_2(tmp_path, make_plane, draw_nuclei):
    plane = make_plane(draw_nuclei(20, 40), pixel_size=0.25)
    group = write(tmp_path / "a.zarr", plane)
    assert group.metadata.zarr_format == 2
    # Chunks in folders, which some readers insist on.
    assert (tmp_path / "a.zarr" / "0" / "0" / "0").is_file()
    attributes = dict(group.attrs)
    assert attributes["image-label"] == {"version": "0.4"}
    (multiscale,) = attributes["multiscales"]
    assert multiscale["version"] == "0.4"
    assert multiscale["axes"] == [
        {"name": name, "type": "space", "unit": "micrometer"} for name in "yx"
    ]
    scales = {
        dataset["path"]: dataset["coordinateTransformations"]
        for dataset in multiscale["datasets"]
    }
    assert scales == {
        str(level): [{"type": "scale", "scale": [0.25 * 2**level] * 2}]
        for level in range(3)
    }


def test_an_unknown_pixel_size_has_no_unit(tmp_path, plane):
    group = write(tmp_path / "a.zarr", plane)
    (multiscale,) = dict(group.attrs)["multiscales"]
    assert all("unit" not in axis for axis in multiscale["axes"])


def test_a_new_pyramid_replaces_the_old_one(tmp_path, plane, make_plane):
    write(tmp_path / "a.zarr", plane)
    smaller = make_plane(np.full((5, 6), 3))
    group = write(tmp_path / "a.zarr", smaller)
    assert list(group.array_keys()) == ["0"]
    np.testing.assert_array_equal(group["0"][:], smaller.labels)


def test_a_pyramid_that_reads_back_differently_is_an_error(
    tmp_path, plane, monkeypatch
):
    original = zarr.Array.__setitem__

    def alter(array, place, values):
        original(array, place, values + (array.path == "1"))

    monkeypatch.setattr(zarr.Array, "__setitem__", alter)
    with pytest.raises(OSError, match="a.zarr: reads back differently"):
        write(tmp_path / "a.zarr", plane)
    assert os.listdir(tmp_path) == []
