import dataclasses
import json

import pytest

from nucseg_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    DecodingConfig,
    InferenceConfig,
    ModelConfig,
    TrainConfig,
    UnknownSettingError,
)

SECTIONS = (DataConfig, ModelConfig, TrainConfig, InferenceConfig, DecodingConfig)

# Every setting with a value that is not its default.
OTHER = Config(
    data=DataConfig(
        data_dir="data/Zellkerne ü",
        truth="masks",
        split="train.txt,val.txt",
        val_fraction=0.25,
        split_seed=7,
        framing="crop",
        size=192,
        clahe_clip_limit=0.0,
        normalization="dark",
        augmentation="flips",
        zoom=1.25,
        balance_by="modality",
        targets=("foreground", "distance"),
        pixel_size=0.5,
        cache_mib=64,
    ),
    model=ModelConfig(features=(8, 16, 32), dtype="bfloat16", batch_norm_momentum=0.9),
    train=TrainConfig(
        seed=3,
        init="small",
        learn_val=True,
        num_epochs=2,
        steps_per_epoch=0,
        batch_size=4,
        supervision="per_head",
        learning_rate=3e-4,
        warmup_epochs=0.5,
        decay="cosine",
        decay_epochs=(2.0, 3.5),
        clip_norm=1.0,
        ema_decay=0.99,
        num_workers=2,
        max_skipped=3,
    ),
    inference=InferenceConfig(threshold=0.375, fast_head=3),
    decoding=DecodingConfig(
        method="components",
        threshold=0.4,
        marker_threshold=0.6,
        smoothing=1.0,
        peak_height=0.3,
        peak_distance=9,
        min_area=30,
        max_hole=0,
        min_probability=0.7,
        mode="fast",
    ),
)


def through_json(config):
    return Config.from_dict(json.loads(json.dumps(config.to_dict())))


def test_defaults_are_the_originals():
    config = Config()
    assert config.data.size == 256 and config.data.framing == "resize"
    assert config.data.augmentation == "original"
    assert config.model.features == (64, 128, 256, 512, 1024)
    assert config.model.batch_norm_momentum == 0.99
    assert config.train.num_epochs == 20 and config.train.steps_per_epoch == 50
    assert config.train.batch_size == 10 and config.train.learning_rate == 1e-3
    assert config.train.decay == "step" and config.train.decay_epochs == (6.0,)
    assert config.inference.threshold == 0.5


def test_every_other_setting_differs_from_its_default():
    same = {
        field.name
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(section.default)
        if getattr(getattr(OTHER, section.name), field.name) == field.default
    }
    assert not same


@pytest.mark.parametrize("config", (Config(), OTHER), ids=("default", "other"))
def test_json_round_trip(config):
    restored = through_json(config)
    assert restored == config and hash(restored) == hash(config)


def test_dict_holds_what_json_holds():
    settings = OTHER.to_dict()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["model"]["features"] == [8, 16, 32]


def test_missing_settings_take_their_defaults():
    config = Config.from_dict({"data": {"size": 64}, "model": {}})
    assert config == Config(data=DataConfig(size=64))
    assert Config.from_dict({}) == Config()


def test_whole_numbers_serve_as_fractions():
    config = Config.from_dict({"train": {"clip_norm": 1, "decay_epochs": [2, 3]}})
    assert config.train.clip_norm == 1.0 and config.train.decay_epochs == (2.0, 3.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    (
        ({"date": {}}, r"unknown section.*'date'"),
        ({"data": {"sise": 64}}, r"unknown setting.*DataConfig.*'sise'"),
        ({"train": {"epochs": 1, "b": 2}}, r"TrainConfig.*'b', 'epochs'"),
        ({"model": {"depth": 5}}, r"ModelConfig.*'depth'"),
        ({"inference": {"head": 1}}, r"InferenceConfig.*'head'"),
    ),
)
def test_unknown_keys_are_named(settings, message):
    with pytest.raises(UnknownSettingError, match=message):
        Config.from_dict(settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    (
        ({"data": {"size": "256"}}, "size"),
        ({"data": {"size": None}}, "size"),
        ({"data": {"targets": "foreground"}}, "targets"),
        ({"data": {"split": 3}}, "split"),
        ({"train": {"num_epochs": 2.5}}, "num_epochs"),
        ({"train": {"learning_rate": [1e-3]}}, "learning_rate"),
        ({"model": {"features": [8, "16"]}}, "features"),
        ({"model": {"features": 8}}, "features"),
        ({"model": None}, "ModelConfig"),
        ({"train": [1, 2]}, "TrainConfig"),
    ),
)
def test_values_of_other_types_are_named(settings, name):
    with pytest.raises(ConfigError, match=f"^{name} is "):
        Config.from_dict(settings)


BAD = (
    (DataConfig, "truth", "mask"),
    (DataConfig, "framing", "tile"),
    (DataConfig, "size", 15),
    (DataConfig, "val_fraction", 0.0),
    (DataConfig, "val_fraction", 1.0),
    (DataConfig, "val_fraction", float("nan")),
    (DataConfig, "clahe_clip_limit", -0.1),
    (DataConfig, "cache_mib", -1),
    (DataConfig, "pixel_size", float("nan")),
    (DataConfig, "targets", ()),
    (DataConfig, "targets", ("foreground", "nucleoli")),
    (DataConfig, "targets", ("boundary", "foreground")),
    (DataConfig, "targets", ("foreground", "boundary", "boundary")),
    (DataConfig, "normalization", "bright"),
    (DataConfig, "augmentation", "strong"),
    (DecodingConfig, "method", "voronoi"),
    (DecodingConfig, "threshold", 1.5),
    (DecodingConfig, "marker_threshold", -0.5),
    (DecodingConfig, "min_area", -1),
    (DecodingConfig, "min_probability", 1.5),
    (DecodingConfig, "peak_distance", 0),
    (DecodingConfig, "peak_height", 2.0),
    (DecodingConfig, "smoothing", 0.0),
    (ModelConfig, "features", (64,)),
    (ModelConfig, "features", (8, 0)),
    (ModelConfig, "dtype", "float16"),
    (ModelConfig, "batch_norm_momentum", 0.0),
    (ModelConfig, "batch_norm_momentum", 1.0),
    (TrainConfig, "seed", -1),
    (TrainConfig, "num_epochs", 0),
    (TrainConfig, "steps_per_epoch", -1),
    (TrainConfig, "batch_size", 0),
    (TrainConfig, "decay_epochs", (3.0, -1.0)),
    (TrainConfig, "supervision", "heads"),
    (TrainConfig, "learning_rate", 0.0),
    (TrainConfig, "learning_rate", float("nan")),
    (TrainConfig, "warmup_epochs", -0.5),
    (TrainConfig, "decay", "linear"),
    (TrainConfig, "clip_norm", -1.0),
    (TrainConfig, "ema_decay", -0.1),
    (TrainConfig, "ema_decay", 1.0),
    (TrainConfig, "num_workers", -1),
    (TrainConfig, "max_skipped", -1),
    (InferenceConfig, "threshold", -0.1),
    (InferenceConfig, "threshold", 1.1),
    (InferenceConfig, "fast_head", -1),
)


@pytest.mark.parametrize(("section", "name", "value"), BAD)
def test_bad_values_are_named(section, name, value):
    with pytest.raises(ConfigError, match=name):
        section(**{name: value})


@pytest.mark.parametrize(
    ("section", "name", "value"),
    (
        (DataConfig, "size", 16),
        (DataConfig, "clahe_clip_limit", 0.0),
        (DataConfig, "cache_mib", 0),
        (ModelConfig, "features", (1, 1)),
        (TrainConfig, "steps_per_epoch", 0),
        (TrainConfig, "ema_decay", 0.0),
        (InferenceConfig, "threshold", 0.0),
        (InferenceConfig, "threshold", 1.0),
    ),
)
def test_extreme_values_are_allowed(section, name, value):
    assert getattr(section(**{name: value}), name) == value


def test_bad_choices_list_the_good_ones():
    with pytest.raises(ConfigError, match="framing is 'tile'; choose .* resize, crop"):
        DataConfig(framing="tile")


def test_bad_values_in_json_are_named():
    with pytest.raises(ConfigError, match="size is 8"):
        Config.from_dict({"data": {"size": 8}})


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_says_what_it_means(section):
    for field in dataclasses.fields(section):
        assert field.metadata["help"].endswith("."), field.name


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().data.size = 3
