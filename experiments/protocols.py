"""The protocols by which accuracy is quoted, and the measurement of one network.

Apart from the program, because loader processes import the program's module anew and
must not start JAX.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import tqdm

from experiments import training_run
from experiments.device import describe_machine
from nucseg_jax import pretrained
from nucseg_jax.checkpoints import (
    read_config,
    read_fingerprints,
    without_paths,
)
from nucseg_jax.config import Config, DataConfig
from nucseg_jax.data.index import Example, get_subset, load_subsets
from nucseg_jax.evaluation.evaluate import evaluate
from nucseg_jax.inference.segmenter import load_segmenter
from nucseg_jax.training.history import read_history
from nucseg_jax.training.stopping import StopRequest


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How images are divided and scored.

    What a network learns of the training images, their masks or their labels, is left
    to its recipe.

    Attributes:
      split: How the images are divided.
      subset: Which part is scored.
      truth: What it is scored by, "masks" or "labels".
      score_size: Side to which truth and prediction are brought; 0 = their own.
    """

    split: str
    subset: str
    truth: str
    score_size: int


PROTOCOLS = {
    "original": Protocol("original_split", "val", "masks", 256),
    "literature": Protocol("random_split", "test", "masks", 256),
    "grouped": Protocol("grouped_split", "test", "labels", 0),
}


def measure(
    protocol: str,
    config: Config,
    *,
    subset: str | None,
    tta: int = 1,
    num_runs: int,
    workdir: pathlib.Path,
    stop: StopRequest,
) -> dict[str, Any]:
    """Trains and scores networks that differ in their seeds.

    Args:
      protocol: A name in `PROTOCOLS`; it overrides the split.
      config: The recipe; its seed is that of the first run.
      subset: What is scored; None = what the protocol says.
      tta: Views to average in scoring, see `load_segmenter`.
      num_runs: How many networks.
      workdir: Folder for the runs; those that are finished there are not trained
        again, only tuned and scored.
      stop: Whether to stop before the end.

    Returns:
      What was measured, on what and by which settings, for JSON.

    Raises:
      ValueError: If the data are not those of the protocol, cannot give the targets,
        or what is scored may have been learned from.
    """
    rules = PROTOCOLS[protocol]
    rules = dataclasses.replace(rules, subset=subset or rules.subset)
    config = _replace(config, "data", split=rules.split)
    # Before hours of training.
    if not config.data.data_dir:
        raise ValueError("a protocol needs --data_dir, the folder of the Bowl's images")
    _check_beginning(config)
    if rules.subset in config.train.learned_subsets:
        raise ValueError(
            "what is scored here are the validation images: do not learn from them, "
            "leave --learn_val out"
        )
    examples = _find_scored(config.data, rules)
    seeds = range(config.train.seed, config.train.seed + num_runs)
    runs = [
        _measure_run(
            _replace(config, "train", seed=seed),
            workdir / f"seed_{seed}",
            examples,
            rules,
            stop,
            tta=tta,
        )
        for seed in seeds
    ]
    return {
        "protocol": protocol,
        "subset": rules.subset,
        "truth": rules.truth,
        "score_size": rules.score_size,
        "tta": tta,
        "machine": describe_machine(),
        "config": without_paths(config).to_dict(),
        "runs": runs,
    }


def _find_scored(config: DataConfig, rules: Protocol) -> list[Example]:
    """Finds what is scored, with the truth that the protocol asks for."""
    config = dataclasses.replace(config, truth=rules.truth)
    return get_subset(config, load_subsets(config), rules.subset)


def _check_beginning(config: Config) -> None:
    """Refuses to begin with a network that may know the images that are scored."""
    init = config.train.init
    if not init:
        return
    folder = pretrained.resolve(init)
    known = read_fingerprints(folder).get("train")
    learned = load_subsets(config.data)["train"]
    is_same = known == training_run.take_fingerprint("train", learned)
    before = read_config(folder).train
    if before.init or before.learn_val or not is_same:
        raise ValueError(
            f"--init={init}: did not learn from the training images of this protocol "
            "alone, or does not tell, and may know those that are scored"
        )


def _measure_run(
    config: Config,
    workdir: pathlib.Path,
    examples: list[Example],
    rules: Protocol,
    stop: StopRequest,
    *,
    tta: int,
) -> dict[str, Any]:
    training_run.run(config, workdir, stop)
    bar = tqdm.tqdm(examples, desc=f"scoring {rules.subset}", unit="image")
    scores = evaluate(
        load_segmenter(workdir, tta=tta),
        stop.watch(bar),
        threshold=0.5,
        score_size=rules.score_size,
    ).to_dict()
    del scores["images"]
    # A run that began with another one took that one's time, too.
    init = config.train.init
    began_with = [pathlib.Path(init)] if init else []
    return {
        "seed": config.train.seed,
        "train_s": _read_seconds([*began_with, workdir]),
        **scores,
    }


def _read_seconds(runs: Iterable[pathlib.Path]) -> float:
    """Sums up what the epochs of runs took, without validation."""
    rows = [row for run in runs for row in read_history(run / "history.csv")]
    return sum(row["seconds"] for row in rows)


def _replace(config: Config, section: str, **settings: Any) -> Config:
    changed = dataclasses.replace(getattr(config, section), **settings)
    return dataclasses.replace(config, **{section: changed})
