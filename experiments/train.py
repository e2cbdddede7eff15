"""Trains a UNet++ on a folder of images.

    python -m experiments.train --flagfile=experiments/flagfiles/demo.flags \\
        --workdir=runs/demo

Started again with the same --workdir, it goes on where the last checkpoint stands.
The workdir gets checkpoints/, config.json, history.csv, curves.png and tensorboard/.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

from absl import flags

from experiments import flags as shared

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
shared.define_settings("data", "model", "train")

# Settings that a run may change when it is continued.
_FREE = {"num_epochs", "num_workers", "cache_mib", "data_dir"}


def main() -> None:
    """Wires data, network and learning together and runs them."""
    # Imported here: loader processes import this module too, and need no JAX.
    import jax

    from experiments.device import describe_device
    from nucseg_jax import checkpoints as ckpt
    from nucseg_jax.data import index, pipeline
    from nucseg_jax.evaluation.figures import draw_curves
    from nucseg_jax.training import history, loop, losses, optim, state, step

    config = shared.config_from_flags()
    workdir = pathlib.Path(_WORKDIR.value)
    data = shared.resolve_data(config.data)
    subsets = index.load_subsets(data)
    print(describe_device())
    print(describe_data(data.data_dir, subsets))

    train = config.train
    steps = train.steps_per_epoch or math.ceil(len(subsets["train"]) / train.batch_size)
    model = ckpt.create_model(config)
    tx = optim.create_optimizer(train, steps)
    current = state.create_train_state(
        model, tx, seed=train.seed, ema_decay=train.ema_decay
    )
    saved = ckpt.Checkpoints(workdir)
    check_resumable(workdir, saved.saved_config(), config)
    restored = saved.restore_latest(current)
    if restored:
        current, position = restored
        print(f"resuming {workdir} after epoch {position['epoch']}")
    write_config(workdir, config)

    record = history.History(workdir, num_epochs_done=int(current.step) // steps)
    loss = losses.SUPERVISIONS[train.supervision]
    batches = pipeline.make_train_batches(
        subsets["train"],
        data,
        batch_size=train.batch_size,
        seed=train.seed,
        num_workers=train.num_workers,
        first_batch=int(current.step),
    )

    def end_epoch(now: state.TrainState, row: dict, validation: loop.Validation):
        record.append(row)
        draw_curves(record.rows, workdir / "curves.png")
        saved.save(
            int(now.step),
            now,
            config=ckpt.with_inference(config, validation.inference),
            position={"next_batch": int(now.step), "epoch": row["epoch"] + 1},
            metrics=validation.metrics,
        )
        print(describe_epoch(validation.metrics))

    try:
        loop.fit(
            current,
            batches,
            jax.jit(
                step.make_train_step(loss, ema_decay=train.ema_decay), donate_argnums=0
            ),
            loop.make_validate(
                jax.jit(step.make_eval_step(model, loss)),
                pipeline.make_eval_batches(
                    subsets["val"], data, batch_size=train.batch_size
                ),
            ),
            num_epochs=train.num_epochs,
            steps_per_epoch=steps,
            end_epoch=end_epoch,
        )
    finally:
        batches.close()
        record.close()
        saved.close()
    print(f"{workdir}: {train.num_epochs} epochs done, see {workdir / 'curves.png'}")


def describe_data(data_dir: str, subsets: dict) -> str:
    """Returns one line that tells the folder and the size of each subset."""
    sizes = ", ".join(f"{len(part)} {name}" for name, part in subsets.items() if part)
    return f"data: {data_dir} ({sizes})"


def describe_epoch(metrics) -> str:
    """Returns one line of validation metrics."""
    values = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    return f"  validation: {values}"


def check_resumable(workdir: pathlib.Path, old, new) -> None:
    """Refuses to continue a run with other settings than it began with.

    Raises:
      ValueError: Names the settings that differ.
    """
    if old is None:
        return
    differing = [
        f"{name} was {before!r}, is {after!r}"
        for section in ("data", "model", "train")
        for name, before, after in _pairs(getattr(old, section), getattr(new, section))
        if name not in _FREE and before != after
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run with other settings ({'; '.join(differing)}): "
            "choose another --workdir, or delete it to begin anew"
        )


def write_config(workdir: pathlib.Path, config) -> None:
    """Writes the settings where people look for them; checkpoints hold them too."""
    text = json.dumps(config.to_dict(), indent=2)
    (workdir / "config.json").write_text(text + "\n", encoding="utf-8")


def _pairs(old, new):
    for field in dataclasses.fields(old):
        yield field.name, getattr(old, field.name), getattr(new, field.name)


if __name__ == "__main__":
    shared.run(main)
