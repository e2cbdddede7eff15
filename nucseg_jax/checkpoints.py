"""Orbax checkpoints of a run: the latest and the best, and restoring from them.

A checkpoint holds four items: `state` (arrays), and as JSON `config`, `position` and
`digests`, the checksums of the others. It is therefore all that evaluation and
prediction need, and nothing in it is code.

A run has them in two folders: `checkpoints/` those of whole epochs, with their
metrics, and `interrupted/` the one that a stop in the midst of an epoch left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

import nucseg_jax
from nucseg_jax import device
from nucseg_jax.config import (
    Config,
    DataConfig,
    DecodingConfig,
    Mode,
    UnknownSettingError,
)
from nucseg_jax.digests import digest_json, digest_tree
from nucseg_jax.files import replacing, write_json
from nucseg_jax.network.unet_plus_plus import UNetPlusPlus

_State = TypeVar("_State")
_FOLDER = "checkpoints"
_INTERRUPTED = "interrupted"
# The better mode is what predicts. Older checkpoints know the averaged heads alone.
_BEST_METRICS = ("best_iou", "iou")
_DECODING = "decoding.json"
# Errors of access, behind which a checkpoint may be whole.
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ESTALE}
_CURE = "restore it from a copy, or delete this folder to use an older checkpoint"


class CheckpointError(ValueError):
    """A checkpoint is missing or does not fit; the message names the folder."""


class Checkpoints:
    """The checkpoints of one run, below `workdir`."""

    def __init__(self, workdir: str | pathlib.Path):
        self._root = pathlib.Path(workdir).absolute()
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=_best_metric, n=1)
        keep = policies.AnyPreservationPolicy([policies.LatestN(1), best])
        self._epochs = _open_for_writing(
            self._root / _FOLDER, keep, best_fn=_best_metric
        )
        self._interrupted: ocp.CheckpointManager | None = None
        if (self._root / _INTERRUPTED).is_dir():
            self._open_interrupted()

    def save(
        self,
        step: int,
        state: Any,
        *,
        config: Config,
        position: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Saves a whole epoch; it is visible only once it is complete.

        Args:
          step: Number of training steps done.
          state: Pytree of arrays.
          config: All settings, with what validation chose.
          position: Where the run stands, for JSON.
          metrics: Validation metrics; the best checkpoint has the highest "best_iou",
            or where there is none, "iou".

        Raises:
          CheckpointError: If it cannot be written; older ones stay.
        """
        metrics = dict(metrics)
        args = _items(state, config, position, metrics)
        _save(self._epochs, step, args, metrics=metrics)
        if self._interrupted:
            for older in self._interrupted.all_steps():
                self._interrupted.delete(older)

    def save_interrupted(
        self, step: int, state: Any, *, config: Config, position: Mapping[str, Any]
    ) -> None:
        """Saves a stop in the midst of an epoch; arguments and errors as `save`'s."""
        manager = self._interrupted or self._open_interrupted()
        if step != manager.latest_step():
            _save(manager, step, _items(state, config, position))

    def restore_latest(self, state: _State) -> tuple[_State, dict[str, Any]] | None:
        """Restores the last complete step into a state of the same structure.

        Returns:
          State and position; None if nothing was saved yet.

        Raises:
          CheckpointError: If what was saved is damaged, has another structure or
            other shapes.
        """
        manager, step = self._latest()
        if step is None:
            return None
        path = _path(manager, step)
        abstract = jax.tree.map(
            ocp.utils.to_shape_dtype_struct, serialization.to_state_dict(state)
        )
        with _naming(path):
            _check_fits(path / "state", abstract)
            restored = manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract),
                    position=ocp.args.JsonRestore(),
                    digests=ocp.args.JsonRestore(),
                ),
            )
            digests = restored["digests"]
            _check_tree(path, restored["state"], digests["state"])
            _check_json(path, "position", restored["position"], digests)
            restored_state = serialization.from_state_dict(state, restored["state"])
        return cast(_State, restored_state), restored["position"]

    def saved_config(self) -> Config | None:
        """Returns the config stored with the last step; None if there is none."""
        manager, step = self._latest()
        return None if step is None else _restore_config(manager, step)

    def best_step(self) -> int:
        """Returns the step that `restore_for_inference` takes.

        Raises:
          CheckpointError: If no epoch was saved.
        """
        return _best_step(self._epochs)

    def close(self) -> None:
        """Releases the folders."""
        for manager in filter(None, (self._epochs, self._interrupted)):
            manager.wait_until_finished()
            manager.close()

    def _open_interrupted(self) -> ocp.CheckpointManager:
        latest = ocp.checkpoint_managers.LatestN(1)
        self._interrupted = _open_for_writing(self._root / _INTERRUPTED, latest)
        return self._interrupted

    def _latest(self) -> tuple[ocp.CheckpointManager, int | None]:
        done = self._epochs.latest_step()
        stopped = self._interrupted.latest_step() if self._interrupted else None
        if self._interrupted and stopped is not None and (done or 0) < stopped:
            return self._interrupted, stopped
        return self._epochs, done


def restore_for_inference(
    directory: str | pathlib.Path, mode: Mode | None = None
) -> tuple[UNetPlusPlus, dict[str, Any], Config]:
    """Restores a trained network from its run folder, with no other knowledge.

    It is that of the best epoch on validation.

    Args:
      directory: The folder that training wrote to.
      mode: Whose decoding is wanted; None = the one that did better on validation.

    Returns:
      The network, its variables (the averaged ones where they were kept), and the
      config that it was trained with, with the decoding that was tuned for it.

    Raises:
      CheckpointError: If there is no checkpoint, or it is damaged.
    """
    with _open_best(directory) as (manager, step):
        config = _restore_config(manager, step)
        model = create_model(config)
        variables = _restore_variables(manager, step, model, config)
    return model, variables, _with_decoding(config, directory, mode)


def read_config(directory: str | pathlib.Path, mode: Mode | None = None) -> Config:
    """Returns the config of `restore_for_inference`, reading no array.

    Raises:
      CheckpointError: As `restore_for_inference`.
    """
    with _open_best(directory) as (manager, step):
        config = _restore_config(manager, step)
    return _with_decoding(config, directory, mode)


def read_saved_config(directory: str | pathlib.Path) -> Config | None:
    """Returns the config stored with what a run has saved; None if it has nothing.

    Nothing is opened for writing: a training may be under way there.

    Raises:
      CheckpointError: If it is damaged.
    """
    for name in (_FOLDER, _INTERRUPTED):
        if (pathlib.Path(directory) / name).is_dir():
            with _quiet_orbax(), _open_for_reading(directory, name) as manager:
                step = manager.latest_step()
                if step is not None:
                    return _restore_config(manager, step)
    return None


def read_fingerprints(directory: str | pathlib.Path) -> dict[str, str]:
    """Returns the checksum of each subset that a run was trained with; {} if unknown.

    Raises:
      CheckpointError: As `restore_for_inference`.
    """
    with _open_best(directory) as (manager, step):
        return _restore_checked(manager, step, "position").get("data", {})


def read_digest(directory: str | pathlib.Path) -> str:
    """Returns a SHA-256 of what `restore_for_inference` returns, reading no array.

    Raises:
      CheckpointError: As `restore_for_inference`.
    """
    with _open_best(directory) as (manager, step):
        with _reading(manager, step):
            digests = _restore_json(manager, step, "digests")
            saved = [digests["state"], digests["config"]]
    decodings = map(dataclasses.asdict, _read_decodings(pathlib.Path(directory)))
    return digest_json([*saved, *decodings])


def export_for_inference(
    directory: str | pathlib.Path, target: str | pathlib.Path
) -> None:
    """Writes the best checkpoint of a run again, with what inference needs alone.

    Parameters go into float16, a quarter of a run's checkpoint without the optimizer's
    moments; statistics stay float32, for variances may be tiny. Where the data lay is
    left out.

    Args:
      directory: The folder that training wrote to.
      target: Folder for the result, of the same layout; must not exist.

    Raises:
      CheckpointError: If there is no checkpoint, `target` exists, or a parameter is
        too large for float16.
    """
    if pathlib.Path(target).exists():
        raise CheckpointError(f"{target}: exists; delete it or name another folder")
    _, variables, config = restore_for_inference(directory)
    variables = {**variables, "params": _halve(variables["params"])}
    # What others find in an image must not depend on their processor.
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, dtype="float32")
    )
    with _open_for_reading(directory) as manager:
        step = _best_step(manager)
        metrics = manager.metrics(step)
    with replacing(pathlib.Path(target)) as temporary:
        with contextlib.closing(Checkpoints(temporary)) as exported:
            exported.save(
                step,
                {"ema": variables} if config.train.ema_decay else variables,
                config=_for_others(config),
                position={},
                metrics=metrics,
            )
        # They mark complete checkpoints in stores without renaming, by their full path.
        for mark in temporary.rglob("commit_success.txt"):
            mark.unlink()
        tuned = _read_decodings(pathlib.Path(directory))
        write_decodings(temporary, tuned or [config.decoding])


def _halve(params: Any) -> Any:
    """Brings parameters to float16, whose largest number is 65,504."""
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(halved):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise CheckpointError(
                f"{name}: has values above 65,504, too large for half precision; this "
                "network cannot be exported"
            )
    return halved


def _for_others(config: Config) -> Config:
    """Drops what only means something beside the data that was learned from."""
    config = without_paths(config)
    default = DataConfig().split
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, split=default)
    )


def without_paths(config: Config) -> Config:
    """Drops what only means something on the machine where the config was made."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, data_dir=""),
        train=dataclasses.replace(
            config.train, init=pathlib.PurePath(config.train.init).name
        ),
    )


def write_decodings(
    directory: str | pathlib.Path, decodings: Sequence[DecodingConfig]
) -> None:
    """Keeps tuned decodings beside the checkpoints of a run, as decoding.json.

    Args:
      directory: The folder that training wrote to.
      decodings: One a mode that was tuned; the first is the default.
    """
    path = pathlib.Path(directory) / _DECODING
    write_json(path, [dataclasses.asdict(decoding) for decoding in decodings])


def remove_decodings(directory: str | pathlib.Path) -> None:
    """Forgets the tuned decodings of a run, if there are any."""
    (pathlib.Path(directory) / _DECODING).unlink(missing_ok=True)


def _with_decoding(
    config: Config, directory: str | pathlib.Path, mode: Mode | None
) -> Config:
    decodings = _read_decodings(pathlib.Path(directory)) or [config.decoding]
    tuned = [decoding for decoding in decodings if decoding.mode == mode]
    return dataclasses.replace(config, decoding=(tuned or decodings)[0])


def _read_decodings(directory: pathlib.Path) -> list[DecodingConfig]:
    """Reads what `write_decodings` wrote; nothing where nothing was tuned."""
    path = directory / _DECODING
    if not path.is_file():
        return []
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return [Config.from_dict({"decoding": item}).decoding for item in settings]
    except UnknownSettingError as error:
        raise _of_newer_version(path, error) from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); delete it") from error


def create_model(config: Config) -> UNetPlusPlus:
    """Creates the network that a config describes."""
    return UNetPlusPlus(
        features=config.model.features,
        num_targets=len(config.data.targets),
        dtype=jnp.dtype(config.model.dtype),
        batch_norm_momentum=config.model.batch_norm_momentum,
    )


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps Orbax from telling, by three warnings, that reading does not write."""
    logger = logging.getLogger("absl")
    logger.addFilter(_tells_errors)
    try:
        yield
    finally:
        logger.removeFilter(_tells_errors)


def _tells_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Turns what libraries raise over damaged files into one error that names them."""
    try:
        yield
    # Of the last kind are full devices.
    except (CheckpointError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except UnknownSettingError as error:
        raise _of_newer_version(path, error) from error
    except Exception as error:  # Orbax, TensorStore and JSON raise what they like.
        if isinstance(error, OSError) and error.errno in _NO_ACCESS:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error
        raise CheckpointError(
            f"{path}: is damaged ({_first_line(error)}); {_CURE}"
        ) from error


@contextlib.contextmanager
def _reading(manager: ocp.CheckpointManager, step: int) -> Iterator[pathlib.Path]:
    """Gives the folder of a step that is listed; names it in what reading raises."""
    path = _path(manager, step)
    try:
        with _naming(path):
            yield path
    except CheckpointError as error:
        if path.exists():
            raise
        raise CheckpointError(
            f"{path}: was replaced by a newer one while it was read, as a training "
            "that goes on does; try again"
        ) from error


def _of_newer_version(
    path: pathlib.Path, error: UnknownSettingError
) -> CheckpointError:
    return CheckpointError(
        f"{path}: was written by a newer nucseg_jax than this one, "
        f"{nucseg_jax.__version__} ({error}); install that"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _open_for_writing(
    folder: pathlib.Path, keep: Any, **options: Any
) -> ocp.CheckpointManager:
    manager_options = ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        # The train step reuses the state's memory, and on CPU a background save
        # would read from that very memory.
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        **options,
    )
    with _naming(folder):
        return ocp.CheckpointManager(folder, options=manager_options)


@contextlib.contextmanager
def _open_best(
    directory: str | pathlib.Path,
) -> Iterator[tuple[ocp.CheckpointManager, int]]:
    """Opens the checkpoints of a run and finds the best one's step."""
    with _quiet_orbax(), _open_for_reading(directory) as manager:
        yield manager, _best_step(manager)


def _open_for_reading(
    directory: str | pathlib.Path, name: str = _FOLDER
) -> ocp.CheckpointManager:
    folder = pathlib.Path(directory).absolute() / name
    if not folder.is_dir():
        raise CheckpointError(
            f"{directory}: holds no folder {name}/ of a trained run, and is not a "
            "network that comes with the project"
        )
    device.start()
    options = ocp.CheckpointManagerOptions(best_fn=_best_metric, read_only=True)
    with _naming(folder):
        return ocp.CheckpointManager(folder, options=options)


def _path(manager: ocp.CheckpointManager, step: int) -> pathlib.Path:
    return pathlib.Path(str(manager.directory)) / str(step)


def _best_step(manager: ocp.CheckpointManager) -> int:
    """Finds the best step.

    All metrics are checked first: a damaged one might hide it, or make another best.
    """
    for step in manager.all_steps():
        _restore_checked(manager, step, "metrics")
    step = manager.best_step()
    if step is None:
        raise CheckpointError(f"{manager.directory}: holds no complete checkpoint")
    return step


def _items(
    state: Any,
    config: Config,
    position: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
) -> ocp.args.Composite:
    tree, settings, position = (
        serialization.to_state_dict(state),
        config.to_dict(),
        dict(position),
    )
    digests = {
        "state": digest_tree(tree),
        "config": digest_json(settings),
        "position": digest_json(position),
        "metrics": digest_json(metrics),
    }
    return ocp.args.Composite(
        state=ocp.args.StandardSave(tree),
        config=ocp.args.JsonSave(settings),
        position=ocp.args.JsonSave(position),
        digests=ocp.args.JsonSave(digests),
    )


def _save(
    manager: ocp.CheckpointManager, step: int, args: ocp.args.Composite, **kwargs: Any
) -> None:
    try:
        manager.save(step, args=args, **kwargs)
        manager.wait_until_finished()
    except (ValueError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{_path(manager, step)}: cannot be written ({_first_line(error)}); is the "
            "disk full? Older checkpoints are whole: make room and start again"
        ) from error


def _restore_json(manager: ocp.CheckpointManager, step: int, name: str) -> Any:
    args = ocp.args.Composite(**{name: ocp.args.JsonRestore()})
    return manager.restore(step, args=args)[name]


def _restore_checked(manager: ocp.CheckpointManager, step: int, name: str) -> Any:
    with _reading(manager, step) as path:
        value = _restore_json(manager, step, name)
        _check_json(path, name, value, _restore_json(manager, step, "digests"))
    return value


def _restore_config(manager: ocp.CheckpointManager, step: int) -> Config:
    settings = _restore_checked(manager, step, "config")
    with _reading(manager, step):
        return Config.from_dict(settings)


def _restore_variables(
    manager: ocp.CheckpointManager, step: int, model: UNetPlusPlus, config: Config
) -> dict[str, Any]:
    """Reads the variables alone, without the optimizer's state."""
    with _reading(manager, step) as path:
        digests = _restore_json(manager, step, "digests")["state"]
        return _read_variables(path, model, config, digests)


def _read_variables(
    path: pathlib.Path, model: UNetPlusPlus, config: Config, digests: Mapping[str, str]
) -> dict[str, Any]:
    side = 2 ** (model.depth - 1)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = dict(jax.eval_shape(model.init, jax.random.key(0), image))
    wanted = {"ema": variables} if config.train.ema_decay else variables
    saved = _check_fits(path / "state", wanted, partial=True)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    # As they were saved, perhaps in half precision, for that is what was digested.
    restore_args = jax.tree.map(
        lambda leaf, old: ocp.ArrayRestoreArgs(
            sharding=device, global_shape=leaf.shape, dtype=old.dtype
        ),
        wanted,
        {name: saved[name] for name in wanted},
    )
    restored = ocp.PyTreeCheckpointer().restore(
        path / "state",
        args=ocp.args.PyTreeRestore(
            item=wanted, restore_args=restore_args, partial_restore=True
        ),
    )
    _check_tree(path, restored, digests)
    restored = jax.tree.map(lambda a, leaf: a.astype(leaf.dtype), restored, wanted)
    return restored["ema"] if config.train.ema_decay else restored


def _check_tree(path: pathlib.Path, tree: Any, digests: Mapping[str, str]) -> None:
    for name, digest in digest_tree(tree).items():
        _check_digest(path, f"the array {name}", digest, digests.get(name))


def _check_json(
    path: pathlib.Path, name: str, value: Any, digests: Mapping[str, Any]
) -> None:
    _check_digest(path, name, digest_json(value), digests[name])


def _check_digest(path: pathlib.Path, what: str, have: str, wanted: str | None) -> None:
    if have != wanted:
        raise CheckpointError(
            f"{path}: is damaged, {what} is not what was saved; {_CURE}"
        )


def _check_fits(path: pathlib.Path, wanted: Any, *, partial: bool = False) -> Any:
    """Compares names and shapes before anything is read.

    Orbax itself may cut or pad an array of another shape without a word.

    Returns:
      What is saved: a tree with shapes and dtypes.
    """
    saved = ocp.PyTreeCheckpointer().metadata(path).item_metadata
    if saved is None:
        raise CheckpointError(f"{path}: is damaged, its list of arrays is missing")
    want, have = _shapes(wanted), _shapes(saved.tree)
    differing = [name for name, shape in want.items() if have.get(name) != shape]
    if not partial:
        differing += [name for name in have if name not in want]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{path}: does not fit these settings: {name} is {have.get(name)}, wanted "
            f"is {want.get(name)} ({len(differing)} arrays differ)"
        )
    return saved.tree


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(key): tuple(leaf.shape) for key, leaf in leaves}


def _best_metric(metrics: Mapping[str, float]) -> float:
    """Pixel IoU; a value that is not finite is worse than any other."""
    value = next(metrics[name] for name in _BEST_METRICS if name in metrics)
    return value if math.isfinite(value) else -math.inf
