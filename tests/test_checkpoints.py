import contextlib
import dataclasses
import functools
import gc
import json
import pathlib
import re
import resource
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from nucseg_jax import checkpoints as ckpt
from nucseg_jax.config import (
    Config,
    DecodingConfig,
    InferenceConfig,
    ModelConfig,
    TrainConfig,
)
from nucseg_jax.inference.predictor import make_predict_fn
from nucseg_jax.training import losses
from nucseg_jax.training.optim import create_optimizer
from nucseg_jax.training.state import create_train_state
from nucseg_jax.training.step import make_train_step
from tests.helpers import disc_image
from tests.training.test_step import make_batch

FEATURES = (2, 3)
CONFIG = Config(
    model=ModelConfig(features=FEATURES),
    train=TrainConfig(decay="cosine", num_epochs=4, warmup_epochs=1, clip_norm=1.0),
)


@functools.cache
def parts(config):
    """One model and optimizer a config: other objects would be other traces."""
    return ckpt.create_model(config), create_optimizer(config.train, 1)


def create_state(config=CONFIG, seed=0):
    return create_train_state(
        *parts(config),
        seed=seed,
        ema_decay=config.train.ema_decay,
    )


@functools.cache
def compile_step(ema_decay):
    step = make_train_step(losses.average_supervision, ema_decay=ema_decay)
    return jax.jit(step, donate_argnums=0)


def train(state, steps, config=CONFIG):
    step = compile_step(config.train.ema_decay)
    for number in steps:
        state, _ = step(state, make_batch(seed=10 * number))
    return state


def save(workdir, state, *, step, iou, config=CONFIG):
    saved = ckpt.Checkpoints(workdir)
    saved.save(
        step, state, config=config, position={"epoch": step}, metrics={"iou": iou}
    )
    saved.close()


def with_ema(decay):
    return dataclasses.replace(
        CONFIG, train=dataclasses.replace(CONFIG.train, ema_decay=decay)
    )


def steps_kept(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def assert_same(first, second):
    first, second = (
        jax.tree_util.tree_flatten_with_path(t)[0] for t in (first, second)
    )
    assert [key for key, _ in first] == [key for key, _ in second]
    for (_, a), (_, b) in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_digest_tells_networks_and_their_decoding_apart(tmp_path):
    """It is that of what inference gets, wherever it lies."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save(tmp_path / name, create_state(seed=seed), step=1, iou=0.5)
    digests = {name: ckpt.read_digest(tmp_path / name) for name in "abc"}
    assert digests["a"] == digests["b"] != digests["c"]
    ckpt.write_decodings(tmp_path / "b", [DecodingConfig(min_area=77)])
    assert ckpt.read_digest(tmp_path / "b") != digests["a"]
    save(tmp_path / "a", create_state(seed=2), step=2, iou=0.4)
    assert ckpt.read_digest(tmp_path / "a") == digests["a"]
    save(tmp_path / "a", create_state(seed=2), step=3, iou=0.6)
    assert ckpt.read_digest(tmp_path / "a") != digests["a"]


def test_each_mode_has_the_decoding_that_was_tuned_for_it(tmp_path):
    save(tmp_path, create_state(), step=1, iou=0.5)
    fast = DecodingConfig(mode="fast", min_area=77)
    accurate = DecodingConfig(mode="accurate", min_area=33)
    ckpt.write_decodings(tmp_path, [fast, accurate])
    for mode, expected in ((None, fast), ("fast", fast), ("accurate", accurate)):
        assert ckpt.read_config(tmp_path, mode).decoding == expected
        assert ckpt.restore_for_inference(tmp_path, mode)[2].decoding == expected
    ckpt.write_decodings(tmp_path, [fast])
    assert ckpt.read_config(tmp_path, "accurate").decoding == fast
    ckpt.remove_decodings(tmp_path)
    assert ckpt.read_config(tmp_path, "fast").decoding == DecodingConfig()


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_four_steps_are_two_steps_stop_resume_two_steps(tmp_path, ema_decay):
    config = with_ema(ema_decay)
    unbroken = train(create_state(config), range(4), config)
    save(tmp_path, train(create_state(config), range(2), config), step=2, iou=0.5)
    restored = ckpt.Checkpoints(tmp_path).restore_latest(create_state(config, seed=9))
    assert restored is not None
    state, position = restored
    assert position == {"epoch": 2}
    assert_same(train(state, range(2, 4), config), unbroken)


def test_latest_and_best_are_kept(tmp_path):
    for step, iou in enumerate([0.1, 0.5, 0.3, 0.2, 0.05]):
        save(tmp_path, {"a": np.full(2, step)}, step=step, iou=iou)
    assert steps_kept(tmp_path) == [1, 4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_never_the_best(tmp_path, bad):
    for step, iou in enumerate([0.4, bad, 0.2]):
        save(tmp_path, {"a": np.full(2, step)}, step=step, iou=iou)
    assert steps_kept(tmp_path) == [0, 2]


def test_nothing_saved_is_nothing_restored(tmp_path):
    saved = ckpt.Checkpoints(tmp_path)
    assert saved.restore_latest(create_state()) is None
    assert saved.saved_config() is None


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_inference_needs_nothing_but_the_folder(tmp_path, ema_decay):
    config = with_ema(ema_decay)
    state = train(create_state(config), range(3), config)
    config = dataclasses.replace(
        config, inference=InferenceConfig(threshold=0.375, fast_head=2)
    )
    variables = jax.device_get(state.variables)
    save(tmp_path, state, step=3, iou=0.5, config=config)
    model, restored, read = ckpt.restore_for_inference(tmp_path)
    assert read == config == ckpt.read_config(tmp_path)
    assert tuple(model.features) == FEATURES
    assert_same(restored, variables)


def test_the_best_is_restored_and_not_the_latest(tmp_path):
    states = [train(create_state(), range(n)) for n in (1, 2)]
    best, latest = (np.asarray(s.params["head_1"]["kernel"]) for s in states)
    for step, state in enumerate(states, start=1):
        save(tmp_path, state, step=step, iou=1 / step)
    _, variables, _ = ckpt.restore_for_inference(tmp_path)
    np.testing.assert_array_equal(variables["params"]["head_1"]["kernel"], best)
    assert (best != latest).any()


def test_another_network_is_refused_with_words(tmp_path):
    save(tmp_path, create_state(), step=1, iou=0.5)
    other = dataclasses.replace(CONFIG, model=ModelConfig(features=(2, 3, 5)))
    with pytest.raises(ckpt.CheckpointError, match="does not fit"):
        ckpt.Checkpoints(tmp_path).restore_latest(create_state(other))


def test_an_empty_folder_is_refused_with_words(tmp_path):
    with pytest.raises(ckpt.CheckpointError, match="holds no folder checkpoints/"):
        ckpt.restore_for_inference(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ckpt.CheckpointError, match="no complete checkpoint"):
        ckpt.restore_for_inference(tmp_path)


def test_an_interrupted_epoch_is_the_latest_until_a_whole_one_is_saved(tmp_path):
    states = {n: train(create_state(), range(n)) for n in (1, 2, 3)}
    steps = {n: int(state.step) for n, state in states.items()}
    save(tmp_path, states[1], step=1, iou=0.5)
    with contextlib.closing(ckpt.Checkpoints(tmp_path)) as saved:
        for _ in range(2):  # The second time there is nothing new.
            saved.save_interrupted(2, states[2], config=CONFIG, position={"epoch": 1})
    with contextlib.closing(ckpt.Checkpoints(tmp_path)) as saved:
        state, position = saved.restore_latest(create_state(seed=9))
        assert (int(state.step), position) == (steps[2], {"epoch": 1})
        # Validation of the epoch was still to be done: the same step is saved whole.
        saved.save(2, state, config=CONFIG, position={"epoch": 2}, metrics={"iou": 0.1})
        assert saved.restore_latest(create_state())[1] == {"epoch": 2}
    assert not any((tmp_path / "interrupted").iterdir())
    _, variables, _ = ckpt.restore_for_inference(tmp_path)
    assert_same(variables["params"], states[1].params)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of two epochs, the first one better, and what it restores to."""
    folder = tmp_path_factory.mktemp("whole")
    for step in (1, 2):
        save(folder, train(create_state(), range(step)), step=step, iou=1 / step)
    return folder, ckpt.restore_for_inference(folder)


@pytest.fixture
def collected():
    """Frees what Orbax began to read and left, as long as it may be complained of."""
    yield
    gc.collect()


_WITH_LEFTOVERS = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def damage(path, kind, rng):
    """Flips a bit, cuts the end off, or deletes."""
    content = bytearray(path.read_bytes())
    if kind == "delete" or not content:
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: rng.integers(len(content))])
    else:
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)


def check_damaged(run_folder, tmp_path, seed):
    """Returns whether one random damage was refused; fails if it was silent."""
    whole, (_, variables, config) = run_folder
    rng = np.random.default_rng(seed)
    folder = tmp_path / str(seed)
    shutil.copytree(whole, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    damage(files[rng.integers(len(files))], rng.choice(["flip", "cut", "delete"]), rng)
    refused = 0
    try:
        _, restored, read = ckpt.restore_for_inference(folder)
        assert read == config
        assert_same(restored, variables)
    except ckpt.CheckpointError as error:
        assert str(folder) in str(error)
        refused += 1
    try:
        with contextlib.closing(ckpt.Checkpoints(folder)) as saved:
            restored = saved.restore_latest(create_state(seed=9))
        if restored is not None:
            step = int(restored[0].step)
            assert_same(restored[0], train(create_state(), range(step)))
            assert restored[1] == {"epoch": step}
    except ckpt.CheckpointError as error:
        assert str(folder) in str(error)
        refused += 1
    shutil.rmtree(folder)
    return refused > 0


@_WITH_LEFTOVERS
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("seed", range(12))
def test_damage_is_refused_or_harmless(run_folder, tmp_path, seed):
    check_damaged(run_folder, tmp_path, seed)


@_WITH_LEFTOVERS
@pytest.mark.usefixtures("collected")
@pytest.mark.slow
def test_two_hundred_damaged_checkpoints(run_folder, tmp_path):
    refused = [check_damaged(run_folder, tmp_path, seed) for seed in range(100, 300)]
    assert 20 < sum(refused) < 200


def test_a_flipped_weight_is_named(run_folder, tmp_path):
    shutil.copytree(run_folder[0], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "1" / "digests"
    text = (folder / "metadata").read_text()
    digests = json.loads(text)["state"]
    name = "['params']['head_1']['kernel']"
    (folder / "metadata").write_text(text.replace(digests[name], "0" * 64))
    with pytest.raises(ckpt.CheckpointError, match=re.escape(f"the array {name}")):
        ckpt.restore_for_inference(tmp_path / "run")


def test_a_checkpoint_that_training_replaces_meanwhile_is_not_called_damaged(
    run_folder, tmp_path, monkeypatch
):
    shutil.copytree(run_folder[0], tmp_path / "run")
    read = ocp.CheckpointManager.restore

    def too_late(manager, step, **options):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
        return read(manager, step, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", too_late)
    with pytest.raises(ckpt.CheckpointError, match="replaced by a newer .* try again"):
        ckpt.read_config(tmp_path / "run")


def test_a_full_disk_is_told_at_once_and_older_checkpoints_stay(run_folder, tmp_path):
    shutil.copytree(run_folder[0], tmp_path / "run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = {"a": np.random.default_rng(0).normal(size=100_000)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ckpt.CheckpointError, match="cannot be written.*disk full"):
            save(tmp_path / "run", state, step=3, iou=0.9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _, variables, _ = ckpt.restore_for_inference(tmp_path / "run")
    assert_same(variables, run_folder[1][1])
    save(tmp_path / "run", state, step=3, iou=0.9)
    assert steps_kept(tmp_path / "run") == [1, 3]


def test_a_checkpoint_of_release_0_1_0_stays_readable(tmp_path):
    """Three steps of `with_ema(0.9)` written by that release, with what it gave."""
    release = pathlib.Path(__file__).parent / "reference" / "run_0_1_0"
    shutil.copytree(release, tmp_path / "run")  # Orbax may tidy what it opens.
    model, variables, config = ckpt.restore_for_inference(tmp_path / "run")
    expected = dataclasses.replace(with_ema(0.9), model=ModelConfig(features=(2, 3, 4)))
    assert config == expected
    image, _ = disc_image(16, seed=3, num_discs=2)
    image = np.repeat(image[None, ..., None], 3, axis=-1).astype(np.float32) / 255
    probs = make_predict_fn(model, variables, "accurate")(image)
    golden = np.load(release / "probabilities.npy")
    np.testing.assert_allclose(probs, golden, atol=1e-5)
    with contextlib.closing(ckpt.Checkpoints(tmp_path / "run")) as saved:
        state, position = saved.restore_latest(create_state(config, seed=9))
    assert int(state.step) == 3 and position == {"epoch": 3}


def test_a_run_is_asked_for_its_settings_without_a_write(tmp_path):
    """Another training may be writing there."""
    assert ckpt.read_saved_config(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    with contextlib.closing(ckpt.Checkpoints(tmp_path)) as saved:
        saved.save_interrupted(1, create_state(), config=CONFIG, position={"epoch": 0})
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert ckpt.read_saved_config(tmp_path) == CONFIG
    assert sorted(tmp_path.rglob("*")) == before


def test_a_network_of_a_newer_version_is_not_called_damaged(tmp_path, monkeypatch):
    """Nobody shall delete it."""
    told = r"was written by a newer nucseg_jax.*'sharpness'.*install that"
    to_dict = Config.to_dict
    with monkeypatch.context() as patch:
        patch.setattr(
            Config,
            "to_dict",
            lambda self: to_dict(self) | {"model": {"sharpness": 2}},
        )
        save(tmp_path / "a", create_state(), step=1, iou=0.5)
    with pytest.raises(ckpt.CheckpointError, match=told):
        ckpt.read_config(tmp_path / "a")
    save(tmp_path / "b", create_state(), step=1, iou=0.5)
    (tmp_path / "b/decoding.json").write_text('[{"sharpness": 2}]')
    with pytest.raises(ckpt.CheckpointError, match=told):
        ckpt.read_config(tmp_path / "b")


@pytest.mark.parametrize("text", ["null", "5", "[5]", '[{"min_area": "x"}]', "["])
def test_a_damaged_decoding_is_named(tmp_path, text):
    save(tmp_path, create_state(), step=1, iou=0.5)
    (tmp_path / "decoding.json").write_text(text)
    with pytest.raises(ckpt.CheckpointError, match=r"decoding\.json: is damaged"):
        ckpt.read_config(tmp_path)
