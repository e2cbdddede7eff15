"""Networks that come with the package: whole, small, and found by name."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

from nucseg_jax import checkpoints as ckpt
from nucseg_jax import load_segmenter, pretrained
from nucseg_jax.config import DataConfig, DecodingConfig
from nucseg_jax.data.images import read_image
from tests.test_checkpoints import CONFIG, create_state, save

ROOT = pathlib.Path(__file__).parents[1]
MOST_BYTES = {"small": 6e6, "base": 20e6}


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_a_network_is_whole_small_and_says_what_it_is(name):
    folder = pretrained.resolve(name)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES[name]
    card = (folder / "card.md").read_text()
    for heading in ("Data", "Recipe", "Scores", "Limits", "Licence"):
        assert f"\n## {heading}\n" in card
    # Where it was trained is nobody's business.
    assert not any(b"/home/" in path.read_bytes() for path in files)
    data = ckpt.restore_for_inference(folder)[2].data
    assert data.data_dir == ""
    # Other people's folders have no such column.
    assert data.split == DataConfig().split


@pytest.mark.parametrize(
    ("backend", "name"), [("cpu", "small"), ("gpu", "base"), ("tpu", "base")]
)
def test_no_checkpoint_means_the_network_for_the_device(monkeypatch, backend, name):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert pretrained.resolve(None) == pretrained.resolve(name)


def test_an_empty_name_is_no_default():
    """As of a variable that is not set."""
    with pytest.raises(ckpt.CheckpointError, match="name is empty; None takes the"):
        pretrained.resolve("")


def test_without_a_name_the_network_for_this_device_is_loaded():
    image = read_image(ROOT / "experiments/sample_data/images/514ccfc7.png")
    found = load_segmenter()(image)
    named = load_segmenter(pretrained.choose())(image)
    assert found.labels.max() > 10
    np.testing.assert_array_equal(found.labels, named.labels)


def test_bfloat16_finds_the_same_nuclei():
    image = read_image(ROOT / "experiments/sample_data/images/514ccfc7.png")
    exact, rounded = (load_segmenter(dtype=d)(image) for d in (None, "bfloat16"))
    assert rounded.probs.dtype == np.float32
    assert not np.array_equal(rounded.probs, exact.probs)
    differences = np.abs(rounded.probs - exact.probs)
    assert differences[..., 0].max() <= 0.05  # Foreground.
    assert differences[..., :3].max() <= 0.1
    # Contacts are thin and steep: single pixels may differ by more.
    assert np.quantile(differences[..., 3], 0.999) <= 0.03
    assert abs(int(rounded.labels.max()) - int(exact.labels.max())) <= 1


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="'float8'; it may be float32, bfloat16"):
        load_segmenter(dtype="float8")


def test_a_run_comes_before_a_network_of_its_name(tmp_path, monkeypatch):
    """But not a folder of results, which may be called as what made them."""
    monkeypatch.chdir(tmp_path)
    assert pretrained.resolve("small").is_dir()
    (tmp_path / "small").mkdir()
    assert pretrained.resolve("small") == pretrained.find("small")
    (tmp_path / "small" / "checkpoints").mkdir()
    assert pretrained.resolve("small") == pathlib.Path("small")
    assert pretrained.resolve(tmp_path / "other") == tmp_path / "other"


@pytest.fixture
def exported(tmp_path):
    """A run's checkpoints and what is exported of them."""
    tuned = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(CONFIG.model, dtype="bfloat16"),
        decoding=DecodingConfig(min_area=77),
    )
    state = create_state(tuned)
    save(tmp_path / "run", state, step=3, iou=0.7, config=tuned)
    ckpt.export_for_inference(tmp_path / "run", tmp_path / "out")
    pretrained.write_sums(tmp_path / "out")
    return state, tmp_path / "out"


def test_export_keeps_network_and_decoding_in_half_precision(exported):
    state, folder = exported
    model, variables, config = ckpt.restore_for_inference(folder)
    assert tuple(model.features) == CONFIG.model.features
    assert config.decoding.min_area == 77
    assert config.model.dtype == "float32"
    for name, tolerance in (("params", 1e-3), ("batch_stats", 0)):
        pairs = zip(
            jax.tree.leaves(variables[name]),
            jax.tree.leaves(state.variables[name]),
            strict=True,
        )
        for ours, theirs in pairs:
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=1e-7)


def test_export_names_no_folder_of_this_machine(exported, tmp_path):
    _, folder = exported
    for path in folder.rglob("*"):
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes()


def test_export_never_replaces(exported):
    _, folder = exported
    with pytest.raises(ckpt.CheckpointError, match="exists"):
        ckpt.export_for_inference(folder.parent / "run", folder)


def test_export_refuses_what_half_precision_cannot_hold(tmp_path):
    state = create_state()
    params = dict(state.params) | {
        "head_1": jax.tree.map(lambda leaf: leaf + 1e5, state.params["head_1"])
    }
    save(tmp_path / "run", state.replace(params=params), step=3, iou=0.7)
    with pytest.raises(ckpt.CheckpointError, match="head_1/.*too large for half"):
        ckpt.export_for_inference(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_export_that_fails_leaves_nothing(exported, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(ckpt, "write_decodings", fail)
    run = exported[1].parent / "run"
    with pytest.raises(OSError, match="disk full"):
        ckpt.export_for_inference(run, run.parent / "other")
    assert sorted(path.name for path in run.parent.iterdir()) == ["out", "run"]


def files_of(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and "SHA" not in p.name)


def test_every_flipped_byte_is_noticed_and_its_file_named(exported):
    _, folder = exported
    pretrained.check_sums(folder)
    rng = np.random.default_rng(0)
    for path in files_of(folder):
        whole = path.read_bytes()
        broken = bytearray(whole)
        broken[rng.integers(len(broken))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        with pytest.raises(ckpt.CheckpointError, match=f"{path.name}: is damaged"):
            pretrained.check_sums(folder)
        path.write_bytes(whole)
    pretrained.check_sums(folder)


def test_an_exported_network_is_checked_too(exported):
    """Its thresholds stand in no checkpoint."""
    _, folder = exported
    assert load_segmenter(folder).decoding.min_area == 77
    (folder / "decoding.json").write_text('[{"min_area": 7}]')
    with pytest.raises(ckpt.CheckpointError, match="damaged; export the network again"):
        load_segmenter(folder)


def test_missing_and_foreign_files_are_named(exported):
    _, folder = exported
    foreign = folder / "checkpoints" / "more"
    foreign.touch()
    with pytest.raises(ckpt.CheckpointError, match="more: does not belong"):
        pretrained.check_sums(folder)
    foreign.unlink()
    # File managers leave their own.
    (folder / ".DS_Store").touch()
    pretrained.check_sums(folder)
    (folder / "decoding.json").unlink()
    with pytest.raises(ckpt.CheckpointError, match=r"decoding\.json: is missing"):
        pretrained.check_sums(folder)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ckpt.CheckpointError, match="SHA256SUMS: is missing"):
        pretrained.check_sums(folder)


def test_a_damaged_network_of_the_package_is_refused(tmp_path, monkeypatch):
    shutil.copytree(pretrained.resolve("small"), tmp_path / "small")
    monkeypatch.setattr(pretrained, "__file__", str(tmp_path / "__init__.py"))
    assert load_segmenter().targets
    (tmp_path / "small" / "card.md").write_text("")
    with pytest.raises(ckpt.CheckpointError, match=r"card\.md: is damaged"):
        load_segmenter()
