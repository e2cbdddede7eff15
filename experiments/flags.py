"""Command-line flags shared by the programs, and the config that they make.

Every setting of `nucseg_jax.config` is a flag of the same name, with its default and
its meaning taken from there. A flag belongs to the program that asks for it here: it
stands in that program's --help. Several programs may ask for the same one.
"""

from __future__ import annotations

import dataclasses
import io
import logging as standard_logging
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from absl import app, flags, logging

from nucseg_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    Dtype,
    Mode,
    ModelConfig,
    TrainConfig,
)
from nucseg_jax.data.errors import MAX_PIXELS
from nucseg_jax.device import DeviceError
from nucseg_jax.training.stopping import Stopped

flags.disclaim_key_flags()  # Flags defined here show in the help of who asked.

SAMPLE_DATA = pathlib.Path(__file__).parent / "sample_data"
_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
}
_SECTIONS = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}
# Which data are meant, not how they are prepared.
DATA_SETTINGS = ["data_dir", "truth", "split", "val_fraction", "split_seed"]
SETTINGS = [
    field.name
    for section in _SECTIONS.values()
    for field in dataclasses.fields(section)
]


class _PathParser(flags.ArgumentParser):
    """Expands ~, which shells leave alone behind an equals sign.

    Nothing is a path only where it is the default: a variable that is not set would
    mean the working directory.
    """

    def __init__(self, default: str | None):
        self._default = default

    def parse(self, argument: Any) -> str:
        if not argument and argument != self._default:
            raise ValueError("is empty; name a file or folder")
        return os.path.expanduser(argument)


def define_path(
    name: str, default: str | None, meaning: str, *, required: bool = False
) -> flags.FlagHolder:
    """Defines a flag for a file or folder."""
    return flags.DEFINE(
        _PathParser(default),
        name,
        default,
        meaning,
        serializer=flags.ArgumentSerializer(),
        required=required,
    )


def checkpoint(meaning: str = "", *, required: bool = True) -> flags.FlagHolder:
    """Asks for the flag --checkpoint: a run or one of the project's networks."""
    if not meaning:
        default = "" if required else "; if not given, base on a GPU and small on a CPU"
        meaning = (
            "Folder of a trained run, or the name of a network that comes with the "
            f"project (small, base){default}."
        )
    return _once(define_path, "checkpoint", None, meaning, required=required)


def subset() -> flags.FlagHolder:
    """Asks for the flag --subset."""
    choices = ["train", "val", "test", "all"]
    meaning = "Part of the data to score; all = every image."
    return _once(flags.DEFINE_enum, "subset", "val", choices, meaning)


def score_size() -> flags.FlagHolder:
    """Asks for the flag --score_size."""
    meaning = "Score at this square size, pixels; 0 = at each image's own."
    return _once(flags.DEFINE_integer, "score_size", 0, meaning, lower_bound=0)


def source(meaning: str) -> flags.FlagHolder:
    """Asks for the flag --input, which must be given."""
    return _once(define_path, "input", None, meaning, required=True)


def output(meaning: str, *, required: bool = True) -> flags.FlagHolder:
    """Asks for the flag --output."""
    return _once(define_path, "output", None, meaning, required=required)


def results(meaning: str, default: str = "experiments/results") -> flags.FlagHolder:
    """Asks for the flag --results: a folder of what was measured."""
    return _once(define_path, "results", default, meaning)


def mode() -> flags.FlagHolder:
    """Asks for the flag --mode."""
    meaning = (
        "Average of all heads, or the one head that validation chose; empty = the one "
        "of these that did better on validation."
    )
    choices = ["", *get_args(Mode)]
    return _once(flags.DEFINE_enum, "mode", "", choices, meaning)


def threshold(meaning: str = "", default: str = "") -> flags.FlagHolder:
    """Asks for the flag --threshold, by default of the decoding."""
    meaning = meaning or (
        "Least probability of a nucleus's pixels; empty = as tuned. If given, no "
        "nucleus is dropped for its mean probability."
    )
    return _once(flags.DEFINE_string, "threshold", default, meaning)


def tta() -> flags.FlagHolder:
    """Asks for the flag --tta."""
    meaning = "Views to average: 8 = all flips and quarter turns."
    return _once(flags.DEFINE_enum, "tta", "1", ["1", "8"], meaning)


def tile() -> flags.FlagHolder:
    """Asks for the flag --tile."""
    meaning = (
        "Side of the largest tile, pixels, a multiple of 64: smaller ones take less "
        "memory and more time; 0 = by the widths of network and image."
    )
    return _once(flags.DEFINE_integer, "tile", 0, meaning, lower_bound=0)


def dtype() -> flags.FlagHolder:
    """Asks for the flag --dtype of a program that predicts."""
    meaning = (
        "Number format of the network's computation: bfloat16 is faster where the "
        "processor has instructions for it; empty = as trained, and float32 for "
        "networks that were exported, as the project's own."
    )
    return _once(flags.DEFINE_enum, "dtype", "", ["", *get_args(Dtype)], meaning)


def scale() -> flags.FlagHolder:
    """Asks for the flag --scale."""
    meaning = (
        "Resize images by this factor for the network, where they were taken at "
        "another magnification than the training images; 0 = by the pixel sizes, where "
        "known."
    )
    return _once(flags.DEFINE_float, "scale", 0.0, meaning)


def channel() -> flags.FlagHolder:
    """Asks for the flag --channel."""
    meaning = (
        "For images of several channels: the one with nuclei, by number from 0 or by "
        "name; or three of them with commas, as red, green and blue. Files with one "
        "channel that has no name are not concerned."
    )
    return _once(flags.DEFINE_string, "channel", "", meaning)


def axes() -> flags.FlagHolder:
    """Asks for the flag --axes."""
    meaning = "For stacks that do not say it: their axes, as TYX, ZYX or CYX."
    return _once(flags.DEFINE_string, "axes", "", meaning)


def max_pixels() -> flags.FlagHolder:
    """Asks for the flag --max_pixels."""
    meaning = "Refuse larger images of kinds that are decoded at once, such as PNG."
    return _once(flags.DEFINE_integer, "max_pixels", MAX_PIXELS, meaning, lower_bound=1)


def pixel_size() -> flags.FlagHolder:
    """Asks for the flag --pixel_size, which is a setting of training, too."""
    meaning = (
        "Micrometres a pixel, for measurements and, if the network knows that of its "
        "training images, for the scale; 0 = as each file says, if it does."
    )
    return _once(flags.DEFINE_float, "pixel_size", 0.0, meaning)


def parse_threshold(text: str) -> float:
    """Reads a probability.

    Raises:
      ValueError: If the text is not a number between 0 and 1.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise ValueError(f"threshold is {text!r}; give a number between 0 and 1")
    return value


def define_settings(*sections: str, only: Sequence[str] = ()) -> None:
    """Asks for the settings of the named sections of the config, or some of them."""
    for section in sections:
        hints = get_type_hints(_SECTIONS[section])
        for field in dataclasses.fields(_SECTIONS[section]):
            if not only or field.name in only:
                _define(field, hints[field.name])


def config_from_flags() -> Config:
    """Builds the config that the flags describe.

    Raises:
      ConfigError: If a value cannot work.
    """
    return Config(**{name: _section(section) for name, section in _SECTIONS.items()})


def given(names: list[str]) -> dict[str, Any]:
    """Returns the named flags that the command line sets, with their values."""
    return {name: _value(name) for name in names if flags.FLAGS[name].present}


def resolve_data(config: DataConfig) -> DataConfig:
    """Fills in the sample that comes with the project where no folder is named."""
    return dataclasses.replace(config, data_dir=config.data_dir or str(SAMPLE_DATA))


def choose_data(trained: DataConfig) -> DataConfig:
    """Returns the data of a training, but for what the command line names."""
    return resolve_data(dataclasses.replace(trained, **given(DATA_SETTINGS)))


def run(main: Any) -> None:
    """Runs a program: quiet libraries, and user errors as one line, not a traceback."""

    def guarded(argv: list[str]) -> Any:
        logging.set_verbosity(logging.ERROR)
        # Names that a terminal cannot show must not end a run.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        # What is wrong with a file, our own errors say.
        standard_logging.getLogger("tifffile").setLevel(standard_logging.CRITICAL)
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument: {argv[1]}")
        try:
            return main()
        except Stopped as error:
            print(f"{error}; the same command goes on from there", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("stopped by SIGINT", file=sys.stderr)
            return 128 + signal.SIGINT
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            message = _explain(error)
            if not message or os.environ.get("NUCSEG_TRACEBACK"):
                raise
            print(f"error: {message}", file=sys.stderr)
            return 1

    try:
        try:
            app.run(guarded)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who reads has seen enough, as `--help | head`; and Python flushes once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _explain(error: Exception) -> str:
    """Says what a user can do about an error; nothing if it is a fault of ours."""
    if isinstance(error, (ValueError, OSError, DeviceError)):
        return str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        reason = str(error).strip().splitlines() or ["of this computer"]
        return (
            f"out of memory ({reason[0][:200]}): lower --batch_size, --size or "
            "--features to train, --tile to predict, or close other programs"
        )
    return ""


def _once(define: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """Defines a flag, or shares it with the program that asked for it before."""
    if name in flags.FLAGS:
        flags.declare_key_flag(name)
        return flags.FlagHolder(flags.FLAGS, flags.FLAGS[name])
    return define(name, *args, **kwargs)


def _define(field: dataclasses.Field, hint: Any) -> None:
    name, default, meaning = field.name, field.default, field.metadata["help"]
    if get_origin(hint) is tuple:
        text = ",".join(str(value) for value in default)  # type: ignore[union-attr]
        _once(flags.DEFINE_list, name, text, meaning)
    elif get_args(hint):
        _once(flags.DEFINE_enum, name, default, list(get_args(hint)), meaning)
    else:
        _once(_DEFINE[hint], name, default, meaning)


def _section(section: type) -> Any:
    return section(
        **{field.name: _value(field.name) for field in dataclasses.fields(section)}
    )


def _value(name: str) -> Any:
    value: Any = flags.FLAGS[name].value
    # The config outlives the working directory that a relative path is meant for.
    if name == "data_dir":
        if not value and flags.FLAGS[name].present:
            raise ConfigError("data_dir is empty; name a folder")
        return _absolute(value)
    if name == "init":
        folder = _absolute(value)
        return folder if os.path.isdir(os.path.join(folder, "checkpoints")) else value
    if name == "split":
        names = [part.strip() for part in value.split(",")]
        files = [_absolute(part) for part in names]
        return ",".join(files if all(map(os.path.isfile, files)) else names)
    if not isinstance(value, list):
        return value
    for section in _SECTIONS.values():
        hint = get_type_hints(section).get(name)
        if hint is not None:
            return _parse_list(name, value, get_args(hint)[0])
    raise KeyError(name)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if path else ""


def _parse_list(name: str, values: list[str], kind: type) -> tuple:
    try:
        return tuple(kind(value) for value in values)
    except ValueError:
        text = ",".join(values)
        raise ConfigError(
            f"{name} is {text!r}; give {kind.__name__}s and commas"
        ) from None
