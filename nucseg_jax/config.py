"""Frozen settings of data, model and training; written to and read from JSON.

A `Config` is stored with every checkpoint, so that evaluation and prediction need no
other knowledge. Values are checked when a config is built. Each setting carries its
meaning, which the command line shows as help.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal, get_args

Truth = Literal["auto", "labels", "masks"]
Framing = Literal["resize", "crop"]
Normalization = Literal["none", "stretch", "dark"]
Augmentation = Literal["none", "flips", "original", "microscopy"]
Dtype = Literal["float32", "bfloat16"]
Supervision = Literal["average", "per_head"]
Decay = Literal["constant", "cosine", "step"]
Method = Literal["watershed", "components"]
Mode = Literal["accurate", "fast"]

TARGET_NAMES = ("foreground", "boundary", "distance", "contact")
BINARY_TARGETS = ("foreground", "boundary", "contact")


class ConfigError(ValueError):
    """A setting has a value that cannot work; the message names it."""


class UnknownSettingError(ConfigError):
    """A setting is not known to this version; the message names it."""


def _setting(default: Any, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": meaning})


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _check_choice(name: str, value: str, choices: Any) -> None:
    allowed = get_args(choices)
    _check(value in allowed, f"{name} is {value!r}; choose one of {', '.join(allowed)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, how it is split, and how it reaches the network."""

    data_dir: str = _setting(
        "",
        "Folder with images and their truth. If not given: to score, that of the "
        "training; to train, a sample that comes with the programs.",
    )
    truth: Truth = _setting(
        "auto", "Kind of truth to use where a folder holds both; auto takes labels."
    )
    split: str = _setting(
        "",
        "Column of index.csv, or files of ids as train.txt,val.txt[,test.txt]. If "
        "empty: the column named split, or else a random draw of whole groups.",
    )
    val_fraction: float = _setting(0.2, "Share of the examples drawn for validation.")
    split_seed: int = _setting(0, "Seed of that draw.")
    framing: Framing = _setting(
        "resize", "Resize whole images to a square, or crop squares at native scale."
    )
    size: int = _setting(
        256, "Side of the square that images are resized or cropped to, pixels."
    )
    clahe_clip_limit: float = _setting(2.5, "Contrast limit of CLAHE; 0 = no CLAHE.")
    normalization: Normalization = _setting(
        "none",
        "Contrast of each image: none = as it is; stretch = percentiles 1 and 99.8 "
        "become black and white; dark = that, and a bright background is inverted.",
    )
    augmentation: Augmentation = _setting(
        "original",
        "How images are varied in training: flips = and quarter turns; original = as "
        "the notebook did; microscopy = those, brightness, hue, blur, noise, gray.",
    )
    zoom: float = _setting(
        1.0,
        "With --framing=crop: crops are cut up to so many times larger or smaller in "
        "training, and resized.",
    )
    balance_by: str = _setting(
        "",
        "Column of index.csv, as modality: examples of rare values come several times "
        "an epoch. If empty: each comes once.",
    )
    targets: tuple[str, ...] = _setting(
        ("foreground",),
        "What each head predicts, one channel each: foreground, then any of boundary, "
        "distance, contact.",
    )
    pixel_size: float = _setting(
        0.0, "Micrometres a pixel of the training images; 0 = unknown."
    )
    cache_mib: int = _setting(
        2048, "Memory for decoded examples in each loading process, MiB."
    )

    @property
    def resizes(self) -> bool:
        """Whether whole images are brought to one size."""
        return self.framing == "resize"

    def __post_init__(self):
        _check_choice("truth", self.truth, Truth)
        _check_choice("framing", self.framing, Framing)
        _check_choice("normalization", self.normalization, Normalization)
        _check_choice("augmentation", self.augmentation, Augmentation)
        _check(self.size >= 16, f"size is {self.size}; it must be at least 16 pixels")
        _check(self.zoom >= 1, f"zoom is {self.zoom}; it must be at least 1")
        _check(
            self.zoom == 1 or self.framing == "crop",
            f"zoom is {self.zoom}; it needs --framing=crop",
        )
        _check(
            0 < self.val_fraction < 1,
            f"val_fraction is {self.val_fraction}; it must lie between 0 and 1",
        )
        _check(
            all(
                value >= 0
                for value in (self.clahe_clip_limit, self.cache_mib, self.pixel_size)
            ),
            "clahe_clip_limit, cache_mib and pixel_size must not be negative",
        )
        _check(
            self.targets[:1] == ("foreground",)
            and set(self.targets) <= set(TARGET_NAMES)
            and len(set(self.targets)) == len(self.targets),
            f"targets is {self.targets}; expected foreground, then any of "
            f"{', '.join(TARGET_NAMES[1:])}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network's shape."""

    features: tuple[int, ...] = _setting(
        (64, 128, 256, 512, 1024), "Channels of each level, from full resolution down."
    )
    dtype: Dtype = _setting(
        "float32", "Number format of the computation; parameters stay float32."
    )
    batch_norm_momentum: float = _setting(
        0.99, "Momentum of batch normalisation's statistics; .9 suits short runs."
    )

    def __post_init__(self):
        _check_choice("dtype", self.dtype, Dtype)
        _check(
            len(self.features) >= 2 and min(self.features) >= 1,
            f"features is {self.features}; give at least two positive numbers",
        )
        _check(
            0 < self.batch_norm_momentum < 1,
            f"batch_norm_momentum is {self.batch_norm_momentum}; it must be in (0, 1)",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How parameters are learned."""

    seed: int = _setting(0, "Governs initial parameters, shuffling and augmentation.")
    init: str = _setting(
        "",
        "Begin with the parameters of this trained run, or of a network that comes "
        "with the project (small, base). Its settings of data and model and its "
        "supervision hold where the command line gives no others. If empty: begin at "
        "random.",
    )
    learn_val: bool = _setting(
        False,
        "Learn from the validation images, too: for the last training of a recipe that "
        "they have chosen. What is then measured on them is of images that are known.",
    )
    num_epochs: int = _setting(20, "Epochs of the whole run.")
    steps_per_epoch: int = _setting(
        50, "Batches an epoch; 0 = as many as the training set fills."
    )
    batch_size: int = _setting(10, "Images a batch.")
    supervision: Supervision = _setting(
        "average", "Loss of the averaged heads, or mean of the heads' losses."
    )
    learning_rate: float = _setting(1e-3, "Highest learning rate.")
    warmup_epochs: float = _setting(
        0.0, "Epochs of linear rise to the highest learning rate."
    )
    decay: Decay = _setting("step", "How the rate goes on after the warm-up.")
    decay_epochs: tuple[float, ...] = _setting(
        (6.0,), "With --decay=step: the epochs at which the rate is halved."
    )
    clip_norm: float = _setting(0.0, "Largest global norm of gradients; 0 = any.")
    ema_decay: float = _setting(
        0.0, "Decay of the averaged parameters to evaluate with; 0 = not kept."
    )
    num_workers: int = _setting(0, "Loading processes; 0 = threads of this one.")
    max_skipped: int = _setting(
        10,
        "Batches in a row that are skipped because loss or gradients are not finite, "
        "before training gives up.",
    )

    @property
    def learned_subsets(self) -> tuple[str, ...]:
        """Names of the subsets that are learned from."""
        return ("train", "val") if self.learn_val else ("train",)

    @property
    def heads_stand_alone(self) -> bool:
        """Whether each head has a loss of its own, and can be used by itself."""
        return self.supervision == "per_head"

    def __post_init__(self):
        _check_choice("supervision", self.supervision, Supervision)
        _check_choice("decay", self.decay, Decay)
        for name in ("num_epochs", "batch_size", "learning_rate"):
            value = getattr(self, name)
            _check(value > 0, f"{name} is {value}; it must be positive")
        for name in (
            "seed",
            "steps_per_epoch",
            "warmup_epochs",
            "clip_norm",
            "num_workers",
            "max_skipped",
        ):
            value = getattr(self, name)
            _check(value >= 0, f"{name} is {value}; it must not be negative")
        _check(
            all(epoch >= 0 for epoch in self.decay_epochs),
            f"decay_epochs is {self.decay_epochs}; they must not be negative",
        )
        _check(
            0 <= self.ema_decay < 1,
            f"ema_decay is {self.ema_decay}; it must be in [0, 1)",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """What validation chose; stored with each checkpoint."""

    threshold: float = _setting(0.5, "Probability of highest pixel IoU.")
    fast_head: int = _setting(0, "Column j of fast mode's head; 0 = not chosen.")

    def __post_init__(self):
        _check(
            0 <= self.threshold <= 1,
            f"threshold is {self.threshold}; it must be in [0, 1]",
        )
        _check(
            self.fast_head >= 0,
            f"fast_head is {self.fast_head}; it must not be negative",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How probabilities become nuclei; sizes in pixels of the training scale."""

    method: Method = _setting(
        "watershed", "Part touching nuclei, or take connected components as they are."
    )
    threshold: float = _setting(0.5, "Least probability of a nucleus's pixels.")
    marker_threshold: float = _setting(
        0.1, "Least depth inside a nucleus that marks it, 0 to 1."
    )
    smoothing: float = _setting(
        2.0, "Standard deviation of the blur of that depth, pixels."
    )
    peak_height: float = _setting(
        0.15, "Least drop of the depth between two markers for two nuclei."
    )
    peak_distance: int = _setting(
        7, "Radius, pixels, around a marker in which nothing is deeper by that."
    )
    min_area: int = _setting(12, "Smaller nuclei are dropped.")
    max_hole: int = _setting(40, "Holes up to this area are filled.")
    min_probability: float = _setting(
        0.0, "Nuclei of a lower mean probability are dropped."
    )
    mode: Mode = _setting("accurate", "Heads that it was tuned for.")

    def __post_init__(self):
        _check_choice("method", self.method, Method)
        _check_choice("mode", self.mode, Mode)
        for name in ("threshold", "marker_threshold", "peak_height", "min_probability"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"{name} is {value}; it must be in [0, 1]")
        for name in ("min_area", "max_hole"):
            value = getattr(self, name)
            _check(value >= 0, f"{name} is {value}; it must not be negative")
        for name in ("peak_distance", "smoothing"):
            value = getattr(self, name)
            _check(value > 0, f"{name} is {value}; it must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()
    decoding: DecodingConfig = DecodingConfig()

    @property
    def fast_head(self) -> int:
        """Column of fast mode's head: the one that was chosen, or else the last."""
        return self.inference.fast_head or len(self.model.features) - 1

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as nested dicts that JSON can hold."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Config:
        """Builds a config from `to_dict`'s result.

        Raises:
          ConfigError: If a section or a setting has a bad value; the special one
            `UnknownSettingError` if one is unknown, as those of a newer version are.
        """
        sections = {
            field.name: type(field.default) for field in dataclasses.fields(cls)
        }
        unknown = set(settings) - set(sections)
        if unknown:
            raise UnknownSettingError(f"unknown section(s): {sorted(unknown)}")
        return cls(
            **{name: _build(sections[name], settings[name]) for name in settings}
        )


def _build(section: type, settings: Any) -> Any:
    name = section.__name__
    _check(isinstance(settings, dict), f"{name} is {settings!r}; expected settings")
    defaults = {field.name: field.default for field in dataclasses.fields(section)}
    unknown = set(settings) - set(defaults)
    if unknown:
        raise UnknownSettingError(f"unknown setting(s) in {name}: {sorted(unknown)}")
    return section(**{k: _restore(k, v, defaults[k]) for k, v in settings.items()})


def _restore(name: str, value: Any, default: Any) -> Any:
    """Returns a JSON value in the type of the setting's default."""
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(_restore(name, item, default[0]) for item in value)
    kind = type(default)
    wanted = (int, float) if kind is float else kind
    _check(isinstance(value, wanted), f"{name} is {value!r}; expected {kind.__name__}")
    return value
