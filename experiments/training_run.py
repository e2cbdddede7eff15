"""Wires data, network and learning together: what `experiments.train` does.

Apart from the program, because loader processes import the program's module anew and
must not start JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from experiments.device import start_device
from experiments.flags import DATA_SETTINGS, resolve_data
from experiments.known_images import warn_of_beginning
from experiments.run_folder import (
    alone_in,
    check_resumable,
    record_start,
    tell_schedule,
    write_config,
)
from nucseg_jax import checkpoints as ckpt
from nucseg_jax import pretrained
from nucseg_jax.config import Config, DecodingConfig, Mode
from nucseg_jax.data import index, pipeline
from nucseg_jax.data.numbering import check_numbered
from nucseg_jax.data.sampling import count_repeats
from nucseg_jax.digests import digest_json
from nucseg_jax.evaluation.evaluate import evaluate
from nucseg_jax.evaluation.figures import draw_batch, draw_curves
from nucseg_jax.evaluation.tuning import can_tune, tune_decoding
from nucseg_jax.inference.segmenter import Segmenter, make_segmenter
from nucseg_jax.network.unet_plus_plus import select_targets
from nucseg_jax.training import history, loop, losses, optim, state, step
from nucseg_jax.training.epoch_metrics import EpochMetrics
from nucseg_jax.training.parallel import AgreedStop, Devices
from nucseg_jax.training.stopping import StopRequest
from nucseg_jax.training.validation import Validation, make_validate

Subsets = Mapping[str, list[index.Example]]

_DRAWN = 4  # Images of the first batch.


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the start of a run to its end.

    Attributes:
      config: All settings.
      workdir: The run's folder.
      subsets: Its data.
      fingerprints: Checksum of each subset.
      saved: Its checkpoints.
      stop: Whether a signal asks it to stop early.
      devices: All devices of all processes.
    """

    config: Config
    workdir: pathlib.Path
    subsets: Subsets
    fingerprints: Mapping[str, str]
    saved: ckpt.Checkpoints
    stop: StopRequest
    devices: Devices

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        train = self.config.train
        return train.steps_per_epoch or math.ceil(sum(self.repeats) / train.batch_size)

    @functools.cached_property
    def repeats(self) -> list[int]:
        """How often each example that is learned from comes in an epoch."""
        return count_repeats(self.learned, self.config.data.balance_by)

    @functools.cached_property
    def learned(self) -> list[index.Example]:
        """What is learned from."""
        return index.join(self.subsets, self.config.train.learned_subsets)


def run(config: Config, workdir: pathlib.Path, stop: StopRequest) -> None:
    """Trains from scratch, or on from the last checkpoint in `workdir`.

    Raises:
      Stopped: If a stop was requested; the same call goes on from there.
      ValueError: If the data or the settings cannot work.
    """
    devices = Devices()
    devices.check_batch_size(config.train.batch_size)
    if devices.shard[1] > 1:
        stop = AgreedStop(stop, devices)
    data = resolve_data(config.data)
    subsets = index.load_subsets(data)
    for name in ("train", "val"):
        index.get_subset(data, subsets, name)
    check_truth(subsets, config)
    check_size(config)
    print(start_device())
    print(index.describe_subsets(data, subsets))
    warn_of_copies(subsets, config.train.learned_subsets)
    if config.train.learn_val:
        print("learning from the validation images, too: their scores say little")
    if not data.resizes:
        print(f"validation: the central {data.size}×{data.size} pixels of each image")
    with alone_in(workdir) if devices.is_writer else contextlib.nullcontext():
        with contextlib.closing(ckpt.Checkpoints(workdir)) as saved:
            before = saved.saved_config()
            check_resumable(workdir, before, config)
            if before is None:
                warn_of_beginning(config, subsets)
            tell_schedule(before, config)
            prints = {name: take_fingerprint(name, p) for name, p in subsets.items()}
            if devices.is_writer:
                write_config(workdir, config)
                record_start(workdir, prints)
            whole = Run(config, workdir, subsets, prints, saved, stop, devices)
            _train(whole)
            best = saved.best_step() // whole.steps_per_epoch
        tune(workdir, subsets["val"], stop, write=devices.is_writer)
    print(
        f"epoch {config.train.num_epochs} is done, see {workdir / 'curves.png'}; what "
        f"is evaluated and predicts is the best on validation, epoch {best}"
        f"{', which it learned from' if config.train.learn_val else ''}"
    )


def _train(run: Run) -> None:
    config, train = run.config, run.config.train
    start, progress = _restore_or_create(run)
    if run.devices.is_writer and progress.epoch < train.num_epochs:
        # What was tuned for one network is wrong for the next.
        ckpt.remove_decodings(run.workdir)
    loss = losses.make_loss(train.supervision, config.data.targets)
    train_step = step.make_train_step(loss, ema_decay=train.ema_decay)
    eval_step = step.make_eval_step(ckpt.create_model(config), loss)
    with (
        _open_record(run, progress.epoch) as record,
        _train_batches(run, int(start.step)) as batches,
        run.devices.in_use(),
    ):
        loop.fit(
            start,
            batches,
            run.devices.compile_train_step(train_step),
            make_validate(
                run.devices.compile_eval_step(eval_step),
                _val_batches(run),
                run.stop,
                heads_stand_alone=train.heads_stand_alone,
            ),
            num_epochs=train.num_epochs,
            steps_per_epoch=run.steps_per_epoch,
            end_epoch=_make_end_epoch(run, record),
            begin=progress,
            stop=run.stop,
            save_progress=functools.partial(_save_progress, run),
            max_skipped=train.max_skipped,
        )


@contextlib.contextmanager
def _open_record(run: Run, num_epochs_done: int) -> Iterator[history.History | None]:
    """Opens the history, in the process that writes."""
    if not run.devices.is_writer:
        yield None
        return
    record = history.History(run.workdir, num_epochs_done=num_epochs_done)
    with contextlib.closing(record):
        yield record


def inherit(
    config: Config, given: Mapping[str, Any], workdir: pathlib.Path | None = None
) -> Config:
    """Takes over the settings of the network that training begins with.

    Those of data and model, and whether its heads were trained to stand alone, without
    which fast mode is lost. Where the data lie, how they are split, how large their
    pixels are and how much of them is held in memory is not among them. A run that goes
    on has its own settings, and needs that network no more.

    Args:
      config: Of the command line.
      given: Settings that the command line sets, which stay as they are.
      workdir: Of the run, if it is a single one.
    """
    if not config.train.init:
        return config
    old = ckpt.read_saved_config(workdir) if workdir else None
    if old is None:
        old = ckpt.read_config(pretrained.resolve(config.train.init))
    own = {*DATA_SETTINGS, "balance_by", "pixel_size", "cache_mib"}
    if given.get("framing") == "resize":
        own |= {"zoom"}  # Of crops.
    sections = {
        "data": dataclasses.asdict(old.data),
        "model": dataclasses.asdict(old.model),
        "train": {"supervision": old.train.supervision},
    }
    for name, before in sections.items():
        taken = {k: v for k, v in before.items() if k not in own | given.keys()}
        sections[name] = dataclasses.replace(getattr(config, name), **taken)
    return dataclasses.replace(config, **sections)


def check_truth(subsets: Subsets, config: Config) -> None:
    """Refuses targets that binary masks cannot give, and masks among label images.

    Raises:
      DatasetError: Names the first such mask.
    """
    for part in subsets.values():
        check_numbered(part)
    needing = [name for name in config.data.targets if name != "foreground"]
    masks = [e for part in subsets.values() for e in part if not e.has_instances]
    if needing and masks:
        raise index.DatasetError(
            f"{masks[0].truth[0]} is a binary mask, in which touching nuclei are one; "
            f"{' and '.join(needing)} must be learned from label images. Use "
            "--targets=foreground, or --truth=labels if there are any"
        )


def check_size(config: Config) -> None:
    """Refuses crops that cannot be halved as often as the network halves them."""
    levels = len(config.model.features)
    multiple = 2 ** (levels - 1)
    if config.data.size % multiple:
        raise ValueError(
            f"size is {config.data.size}; with {levels} features, each of half the "
            f"side of the one before, it must be a multiple of {multiple}"
        )


def warn_of_copies(subsets: Subsets, learned: Sequence[str]) -> None:
    """Tells if images of the subsets to learn from stand among the others once more."""
    known = index.join(subsets, learned)
    for name in [name for name in subsets if name not in learned]:
        if copies := index.find_copies(subsets[name], known):
            print(
                f"WARNING: {len(copies)} of the {name} images are copies of images "
                f"that are learned from, as {copies[0].image}: scores will be too good"
            )


def take_fingerprint(name: str, examples: list[index.Example]) -> str:
    """Returns the checksum of a subset, under a bar, as it reads every byte."""
    bar = tqdm.tqdm(examples, desc=f"reading {name}", unit="image", leave=False)
    return index.fingerprint(bar)


def tune(
    workdir: pathlib.Path,
    examples: list[index.Example],
    stop: StopRequest,
    *,
    write: bool = True,
) -> None:
    """Tunes the decodings of the best checkpoint on validation, and keeps them there.

    One a mode: of accurate and fast, the one that does better becomes the default;
    where heads were trained as an average and are nothing by themselves, accurate. The
    search begins with the decoding of `DecodingConfig`, so that it ends alike however
    often it is done.
    """
    model, variables, config = ckpt.restore_for_inference(workdir)
    config = dataclasses.replace(config, decoding=DecodingConfig())
    scored = []
    for mode in get_args(Mode):
        segmenter = make_segmenter(model, variables, config, mode=mode)
        score, decoding = _tune_mode(segmenter, mode, examples, stop)
        scored.append((score, dataclasses.replace(decoding, mode=mode)))
    if config.train.heads_stand_alone:
        scored.sort(key=lambda pair: pair[0], reverse=True)
    if write:
        ckpt.write_decodings(workdir, [decoding for _, decoding in scored])


def _tune_mode(
    segmenter: Segmenter, mode: str, examples: list[index.Example], stop: StopRequest
) -> tuple[float, DecodingConfig]:
    """Returns how good a mode is, and its decoding."""

    def watched(verb: str) -> Iterator[index.Example]:
        text = f"{verb} {mode} mode on val"
        return stop.watch(tqdm.tqdm(examples, desc=text, unit="image"))

    if not can_tune(examples):
        pooled = evaluate(segmenter, watched("scoring"), threshold=0.5).pooled()
        # Where there are no nuclei, a mode that finds nothing is no better than others.
        iou = pooled["iou"] if pooled["support"] else 0.0
        print(
            f"  pixel IoU {iou:.4f}; decoding is not tuned: the truth shows no nuclei, "
            "or does not tell touching ones apart"
        )
        return iou, segmenter.decoding
    tuning = tune_decoding(segmenter, watched("tuning"), check=stop.check)
    print(
        f"  instance mean AP {tuning.mean_ap:.4f}, untuned {tuning.before:.4f} "
        f"({tuning.num_images} images)"
    )
    return tuning.mean_ap, tuning.decoding


def _restore_or_create(run: Run) -> tuple[state.TrainState, loop.Progress]:
    created = _create(run)
    restored = run.saved.restore_latest(created)
    if restored is None:
        return created, loop.Progress(0)
    resumed, position = restored
    _check_data(run, position["data"])
    # Older checkpoints do not tell.
    if position.get("repeats") not in (None, digest_json(run.repeats)):
        raise ValueError(
            f"{run.config.data.data_dir}: the column {run.config.data.balance_by} of "
            f"index.csv is no longer the one that {run.workdir} was trained with"
        )
    progress = loop.Progress(
        position["epoch"],
        EpochMetrics.from_dict(position["trained"]),
        position["seconds"],
    )
    print(f"going on after epoch {progress.epoch}, step {int(resumed.step)}")
    return resumed, progress


def _create(run: Run) -> state.TrainState:
    config = run.config
    created = state.create_train_state(
        ckpt.create_model(config),
        optim.create_optimizer(config.train, run.steps_per_epoch),
        seed=config.train.seed,
        ema_decay=config.train.ema_decay,
    )
    if config.train.init and run.saved.saved_config() is None:
        created = _begin_with(config, created)
    return run.devices.replicate(created)


def _check_data(run: Run, before: Mapping[str, str]) -> None:
    for name, fingerprint in run.fingerprints.items():
        if fingerprint != before.get(name):
            raise ValueError(
                f"{run.config.data.data_dir}: the {name} images or their truth are no "
                f"longer those that {run.workdir} was trained with: bring them back, "
                f"or begin another run with --init={run.workdir}"
            )


def _begin_with(config: Config, created: state.TrainState) -> state.TrainState:
    """Replaces random variables by those of the network named by --init.

    Raises:
      ValueError: If it has other levels or lacks a target.
    """
    name = config.train.init
    model, variables, old = ckpt.restore_for_inference(pretrained.resolve(name))
    features, targets = config.model.features, config.data.targets
    missing = set(targets) - set(old.data.targets)
    if tuple(model.features) != features or missing:
        raise ValueError(
            f"--init={name} has features {tuple(model.features)} and targets "
            f"{old.data.targets}, expected {features} and {targets}: give the same "
            "features, and none but its targets"
        )
    variables = select_targets(variables, old.data.targets, targets)
    print(f"beginning with the parameters of {name}")
    return created.replace(
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        ema=jax.tree.map(jnp.copy, variables) if config.train.ema_decay else None,
    )


@contextlib.contextmanager
def _train_batches(run: Run, first_batch: int) -> Iterator[Iterator[Any]]:
    """Opens the loader; names the files of a batch that cannot be learned from."""
    train, examples = run.config.train, run.learned
    batches = pipeline.make_train_batches(
        examples,
        run.config.data,
        batch_size=train.batch_size,
        seed=train.seed,
        num_workers=train.num_workers,
        first_batch=first_batch,
        shard=run.devices.shard,
    )
    with contextlib.closing(batches):
        try:
            yield batches if first_batch else _draw_first(run, batches)
        except loop.NotFiniteError as error:
            names = ", ".join(str(examples[i].image) for i in error.index)
            raise ValueError(
                f"{error}; lower --learning_rate, or set --clip_norm=1. "
                f"The last batch: {names}"
            ) from error


def _draw_first(
    run: Run, batches: Iterator[pipeline.Batch]
) -> Iterator[pipeline.Batch]:
    """Draws some of the first batch, where a wrong truth or recipe would show.

    Those with the most nuclei in them, since small crops may have none.
    """
    first = next(batches)
    if run.devices.is_writer:
        nuclear = np.asarray(first["mask"])[..., 0].mean(axis=(1, 2))
        drawn = np.argsort(-nuclear, kind="stable")[:_DRAWN]
        draw_batch(
            first["image_u8"][drawn],
            first["mask"][drawn],
            run.config.data.targets,
            run.workdir / "augmented.png",
        )
    yield first
    yield from batches


def _val_batches(run: Run):
    return pipeline.make_eval_batches(
        run.subsets["val"], run.config.data, batch_size=run.config.train.batch_size
    )


def _position(run: Run, progress: loop.Progress) -> dict[str, Any]:
    return {
        "epoch": progress.epoch,
        "trained": progress.trained.to_dict(),
        "seconds": progress.seconds,
        "data": dict(run.fingerprints),
        "repeats": digest_json(run.repeats),
    }


def _save_progress(run: Run, now: state.TrainState, progress: loop.Progress) -> None:
    run.saved.save_interrupted(
        int(now.step), now, config=run.config, position=_position(run, progress)
    )


def _make_end_epoch(
    run: Run, record: history.History | None
) -> Callable[[state.TrainState, dict[str, float], Validation], None]:
    """Makes what happens after each epoch: record, draw, save, tell."""

    def end_epoch(
        now: state.TrainState, row: dict[str, float], validation: Validation
    ) -> None:
        if record:
            record.append(row)
        run.saved.save(
            int(now.step),
            now,
            config=dataclasses.replace(run.config, inference=validation.inference),
            position=_position(run, loop.Progress(int(row["epoch"]))),
            metrics=validation.metrics,
        )
        if record:
            draw_curves(record.rows, run.workdir / "curves.png")
        values = (f"{name} {value:.4f}" for name, value in validation.metrics.items())
        print(f"  validation: {', '.join(values)}")
        if not validation.has_nuclei:
            print(
                "  WARNING: it shows no nuclei, so that its least loss tells the best "
                "epoch"
            )

    return end_epoch
