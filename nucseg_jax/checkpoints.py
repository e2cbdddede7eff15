"""Orbax checkpoints of a run: the latest and the best, and restoring from them.

A checkpoint holds three items: `state` (arrays), `config` and `position` (JSON). It is
therefore all that evaluation and prediction need, and nothing in it is code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import serialization

from nucseg_jax.config import Config, DecodingConfig
from nucseg_jax.files import replacing
from nucseg_jax.network.unet_plus_plus import UNetPlusPlus

_State = TypeVar("_State")
_FOLDER = "checkpoints"
_BEST_METRIC = "iou"
_DECODING = "decoding.json"


class CheckpointError(ValueError):
    """A checkpoint is missing or does not fit; the message names the folder."""


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`."""

    def __init__(self, workdir: str | pathlib.Path):
        self._directory = pathlib.Path(workdir).absolute() / _FOLDER
        policies = ocp.checkpoint_managers
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(get_metric_fn=_best_metric, n=1),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                best_fn=_best_metric,
                # The train step reuses the state's memory, and on CPU a background
                # save would read from that very memory.
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
            ),
        )

    def save(
        self,
        step: int,
        state: Any,
        *,
        config: Config,
        position: Mapping[str, Any],
        metrics: Mapping[str, float],
    ) -> None:
        """Saves a step; it is visible only once it is complete.

        Args:
          step: Number of training steps done.
          state: Pytree of arrays.
          config: All settings, with what validation chose.
          position: Where the run stands, for JSON.
          metrics: Validation metrics; the best checkpoint has the highest "iou".
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(serialization.to_state_dict(state)),
                config=ocp.args.JsonSave(config.to_dict()),
                position=ocp.args.JsonSave(dict(position)),
            ),
            metrics=dict(metrics),
        )

    def restore_latest(self, state: _State) -> tuple[_State, dict[str, Any]] | None:
        """Restores the last complete step into a state of the same structure.

        Returns:
          State and position; None if nothing was saved yet.

        Raises:
          CheckpointError: If the saved state has another structure or other shapes.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        path = self._directory / str(step) / "state"
        abstract = jax.tree.map(
            ocp.utils.to_shape_dtype_struct, serialization.to_state_dict(state)
        )
        _check_fits(path, abstract)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract),
                position=ocp.args.JsonRestore(),
            ),
        )
        restored_state = serialization.from_state_dict(state, restored["state"])
        return cast(_State, restored_state), restored["position"]

    def saved_config(self) -> Config | None:
        """Returns the config stored with the last step; None if there is none."""
        step = self._manager.latest_step()
        return None if step is None else _restore_config(self._manager, step)

    def close(self) -> None:
        """Waits for saves and releases the folder."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_for_inference(
    directory: str | pathlib.Path, *, which: str = "best"
) -> tuple[UNetPlusPlus, dict[str, Any], Config]:
    """Restores a trained network from its run folder, with no other knowledge.

    Args:
      directory: The folder that training wrote to.
      which: "best" (on validation) or "latest".

    Returns:
      The network, its variables (the averaged ones where they were kept), and the
      config that it was trained with, with the decoding that was tuned for it.

    Raises:
      CheckpointError: If there is no checkpoint, or it is damaged.
    """
    with _quiet_orbax(), _open_for_reading(directory) as manager:
        folder = pathlib.Path(str(manager.directory))
        step = manager.best_step() if which == "best" else manager.latest_step()
        if step is None:
            raise CheckpointError(f"{folder}: holds no complete checkpoint")
        config = _restore_config(manager, step)
        model = create_model(config)
        variables = _restore_variables(folder / str(step) / "state", model, config)
    decoding = _read_decoding(pathlib.Path(directory)) or config.decoding
    return model, variables, dataclasses.replace(config, decoding=decoding)


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
      CheckpointError: If there is no checkpoint, or `target` exists.
    """
    if pathlib.Path(target).exists():
        raise CheckpointError(f"{target}: exists; delete it or name another folder")
    _, variables, config = restore_for_inference(directory)
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), variables["params"])
    variables = {**variables, "params": halved}
    with _open_for_reading(directory) as manager:
        step = manager.best_step()
        metrics = manager.metrics(step)
    with contextlib.closing(Checkpoints(target)) as exported:
        exported.save(
            step,
            {"ema": variables} if config.train.ema_decay else variables,
            config=without_paths(config),
            position={},
            metrics=metrics,
        )
    # They mark complete checkpoints in stores without renaming, by their full path.
    for mark in pathlib.Path(target).rglob("commit_success.txt"):
        mark.unlink()
    write_decoding(target, config.decoding)


def without_paths(config: Config) -> Config:
    """Drops what only means something on the machine where the config was made."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, data_dir=""),
        train=dataclasses.replace(
            config.train, init=pathlib.PurePath(config.train.init).name
        ),
    )


def write_decoding(directory: str | pathlib.Path, decoding: DecodingConfig) -> None:
    """Keeps a tuned decoding beside the checkpoints of a run, as decoding.json."""
    text = json.dumps(dataclasses.asdict(decoding), indent=2) + "\n"
    with replacing(pathlib.Path(directory) / _DECODING) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _read_decoding(directory: pathlib.Path) -> DecodingConfig | None:
    path = directory / _DECODING
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return Config.from_dict({"decoding": settings}).decoding
    except ValueError as error:
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
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _open_for_reading(directory: str | pathlib.Path) -> ocp.CheckpointManager:
    folder = pathlib.Path(directory).absolute() / _FOLDER
    if not folder.is_dir():
        raise CheckpointError(
            f"{directory}: holds no folder {_FOLDER}/ of a trained run"
        )
    options = ocp.CheckpointManagerOptions(best_fn=_best_metric, read_only=True)
    return ocp.CheckpointManager(folder, options=options)


def _restore_config(manager: ocp.CheckpointManager, step: int) -> Config:
    args = ocp.args.Composite(config=ocp.args.JsonRestore())
    return Config.from_dict(manager.restore(step, args=args)["config"])


def _restore_variables(
    path: pathlib.Path, model: UNetPlusPlus, config: Config
) -> dict[str, Any]:
    """Reads the variables alone, without the optimizer's state."""
    side = 2 ** (model.depth - 1)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = dict(jax.eval_shape(model.init, jax.random.key(0), image))
    wanted = {"ema": variables} if config.train.ema_decay else variables
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    restore_args = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(
            sharding=device, global_shape=leaf.shape, dtype=leaf.dtype
        ),
        wanted,
    )
    _check_fits(path, wanted, partial=True)
    restored = ocp.PyTreeCheckpointer().restore(
        path,
        args=ocp.args.PyTreeRestore(
            item=wanted, restore_args=restore_args, partial_restore=True
        ),
    )
    return restored["ema"] if config.train.ema_decay else restored


def _check_fits(path: pathlib.Path, wanted: Any, *, partial: bool = False) -> None:
    """Compares names and shapes before anything is read.

    Orbax itself may cut or pad an array of another shape without a word.
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


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(key): tuple(leaf.shape) for key, leaf in leaves}


def _best_metric(metrics: Mapping[str, float]) -> float:
    """Pixel IoU; a value that is not finite is worse than any other."""
    value = metrics[_BEST_METRIC]
    return value if math.isfinite(value) else -math.inf
