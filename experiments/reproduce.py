"""Trains and scores networks by a published protocol; keeps what was measured.

    python -m experiments.reproduce --protocol=original --runs=3 --data_dir=FOLDER \\
        --flagfile=experiments/flagfiles/original.flags --name=original \\
        --results=runs/results

FOLDER is the 2018 Data Science Bowl with the protocols' splits in its index.csv; the
protocol chooses among them, whatever --split and its like say. Run
after run is trained in --workdir, with the seeds that follow --seed; one that is
finished is not trained again. At the end the scores are printed, and
`python -m experiments.tables` makes tables of all results in a folder. To choose
between recipes, score them with --subset=val: test is to be looked at once. Without
--results they go among those of the project, from which its README is made.
"""

from __future__ import annotations

import pathlib

from absl import flags

from experiments import flags as shared
from nucseg_jax.files import make_folder, write_json
from nucseg_jax.training.stopping import StopRequest

_PROTOCOL = flags.DEFINE_enum(
    "protocol",
    None,
    ["original", "literature", "grouped"],
    "Data and metrics: the Keras notebook's, those of most papers, or whole groups of "
    "images at their own size.",
    required=True,
)
_NAME = flags.DEFINE_string(
    "name", None, "Of the recipe, for the results' file.", required=True
)
_SUBSET = flags.DEFINE_enum(
    "subset", None, ["val", "test"], "Part to score. If not given: the protocol's."
)
_RUNS = flags.DEFINE_integer("runs", 3, "How many networks to train.", lower_bound=1)
_WORKDIR = shared.define_path("workdir", "runs/reproduce", "Folder for the runs.")
_RESULTS = shared.results("Folder for the results' file.")
_TTA = shared.tta()
shared.define_settings("data", "model", "train")


def main() -> None:
    """Trains, scores and writes the results."""
    with StopRequest() as stop:
        reproduce(stop)


def reproduce(stop: StopRequest) -> None:
    """Does so; started again after a stop, it goes on."""
    protocol, name = _PROTOCOL.value, _NAME.value
    config, results = shared.config_from_flags(), pathlib.Path(_RESULTS.value)
    make_folder(results)
    # Not at the top: loader processes import this module, and need no JAX.
    from experiments import protocols, tables, training_run

    config = training_run.inherit(config, shared.given(shared.SETTINGS))
    measured = protocols.measure(
        protocol,
        config,
        subset=_SUBSET.value,
        tta=int(_TTA.value),
        num_runs=_RUNS.value,
        workdir=pathlib.Path(_WORKDIR.value) / f"{protocol}_{name}",
        stop=stop,
    )
    is_prescribed = measured["subset"] == protocols.PROTOCOLS[protocol].subset
    kind = "accuracy" if is_prescribed else "validation"
    path = results / f"{kind}_{protocol}_{name}.json"
    result = {"name": name} | measured
    write_json(path, result)
    print(tables.accuracy_table([result]))
    print(f"written: {path}")


if __name__ == "__main__":
    shared.run(main)
