"""Measures each head of a network by itself: accuracy, time and size of fast mode.

    python -m experiments.heads --checkpoint=small --data_dir=FOLDER \\
        --split=grouped_split --name=small --results=runs/results

As the UNet++ paper does for its pruned networks: the further to the right a head
stands, the more of the network it needs. Writes heads_NAME.json and heads_NAME.png into
--results, of which `python -m experiments.tables` prints a table. Without --results
they go among those of the project, from which its README is made.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags

from experiments import flags as shared
from experiments.device import describe_machine
from experiments.scored_data import describe_split, load_scored_data
from nucseg_jax import pretrained
from nucseg_jax.checkpoints import restore_for_inference
from nucseg_jax.config import Config, DecodingConfig, Mode
from nucseg_jax.data.index import Example
from nucseg_jax.evaluation import figures
from nucseg_jax.evaluation.evaluate import evaluate
from nucseg_jax.evaluation.tuning import can_tune, tune_decoding
from nucseg_jax.files import make_folder, write_json
from nucseg_jax.inference.predictor import make_predict_fn
from nucseg_jax.inference.segmenter import Segmenter, make_segmenter
from nucseg_jax.network.unet_plus_plus import UNetPlusPlus, Variables, prune

_CHECKPOINT = shared.checkpoint()
_NAME = flags.DEFINE_string("name", None, "Of the results' files.", required=True)
_SUBSET = shared.subset()
_SCORE_SIZE = shared.score_size()
_RESULTS = shared.results("Folder for the results' files.")
shared.define_settings("data", only=shared.DATA_SETTINGS)

_SIDE = 256
_REPEATS = 15

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Restored:
    """A trained network, and how each of its heads is used."""

    model: UNetPlusPlus
    variables: Variables
    config: Config

    def mode(self, head: int) -> Mode:
        """Head 0 stands for all."""
        return "fast" if head else "accurate"

    def predict_fn(self, head: int) -> Callable[[Any], jax.Array]:
        """The compiled function of one head, or of all."""
        mode = self.mode(head)
        return make_predict_fn(self.model, self.variables, mode, head=head or None)

    def segmenter(self, head: int, decoding: DecodingConfig) -> Segmenter:
        """Finds nuclei by one head, or by all."""
        config = dataclasses.replace(
            self.config,
            inference=dataclasses.replace(self.config.inference, fast_head=head),
            decoding=decoding,
        )
        return make_segmenter(self.model, self.variables, config, mode=self.mode(head))

    def count_parameters(self, head: int) -> int:
        """What the head needs of the network."""
        variables = self.variables
        if head:
            _, variables = prune(self.model, variables, head)
        return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def main() -> None:
    """Scores and times every head by itself, and all together."""
    restored = Restored(*restore_for_inference(pretrained.resolve(_CHECKPOINT.value)))
    scored = load_scored_data(_CHECKPOINT.value, _SUBSET.value, restored.config)
    data, examples, val = scored.settings, scored.examples, scored.val
    results = pathlib.Path(_RESULTS.value)
    make_folder(results)
    heads = [*range(1, restored.model.depth), 0]
    times = time_heads(restored, heads)
    rows = [
        {
            "head": head,
            "parameters": restored.count_parameters(head),
            "s_per_image": times[head],
            **score_head(restored, examples, val, head),
        }
        for head in heads
    ]
    about = {
        **describe_split(data),
        "subset": _SUBSET.value,
        "score_size": _SCORE_SIZE.value,
        "dtype": restored.config.model.dtype,
        "timed_side": _SIDE,
    }
    write(rows, about, results / f"heads_{_NAME.value}.json")


def time_heads(restored: Restored, heads: list[int]) -> dict[int, float]:
    """Times one random image by each head, in turn; medians of seconds."""
    image = np.random.default_rng(0).random((1, _SIDE, _SIDE, 3), np.float32)
    functions = {head: restored.predict_fn(head) for head in heads}
    taken: dict[int, list[float]] = {head: [] for head in heads}
    for function in functions.values():
        seconds(function, image)
    for _ in range(_REPEATS):
        for head, function in functions.items():
            taken[head].append(seconds(function, image))
    return {head: statistics.median(times) for head, times in taken.items()}


def seconds(function: Callable[[Any], jax.Array], image: np.ndarray) -> float:
    """Times one call."""
    start = time.perf_counter()
    jax.block_until_ready(function(image))
    return time.perf_counter() - start


def score_head(
    restored: Restored, examples: list[Example], val: list[Example], head: int
) -> dict[str, float]:
    """Scores one head: pixel IoU, pooled, and where it can be told, mean AP.

    Its decoding is tuned on validation, as each head has thresholds of its own.
    """
    segmenter = restored.segmenter(head, DecodingConfig())
    name = f"head {head or 'all'}"
    if can_tune(val):
        bar = tqdm.tqdm(val, desc=f"tuning {name}", unit="image")
        tuning = tune_decoding(segmenter, bar)
        segmenter = restored.segmenter(head, tuning.decoding)
    bar = tqdm.tqdm(examples, desc=f"scoring {name}", unit="image")
    scores = evaluate(segmenter, bar, threshold=0.5, score_size=_SCORE_SIZE.value)
    row = {"iou": scores.pooled()["iou"]}
    if scores.instance_counts:
        row["mean_ap"] = scores.mean_instances()["mean_ap"]
    return row


def write(rows: list[Row], about: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the numbers and the figure beside them."""
    report = {"name": _NAME.value, **about, "machine": describe_machine(), "rows": rows}
    write_json(path, report)
    figures.draw_heads(
        {f"head {row['head']}" if row["head"] else "all": row for row in rows},
        path.with_suffix(".png"),
    )
    print(f"written: {path}, {path.with_suffix('.png')}")


if __name__ == "__main__":
    shared.run(main)
