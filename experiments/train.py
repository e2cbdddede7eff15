"""Trains a UNet++ on a folder of images.

    python -m experiments.train --flagfile=experiments/flagfiles/demo.flags \\
        --workdir=runs/demo

Started again with the same --workdir, it goes on where it stopped: at the step at which
SIGTERM or Ctrl-C came, or else after the last whole epoch.
With --init=small it begins with what a network that comes with the project knows.
The workdir gets checkpoints/, config.json, starts.json, augmented.png, history.csv,
curves.png, tensorboard/ and, at the end, decoding.json with the tuned thresholds; and
interrupted/ while a stop amid an epoch waits to go on.
"""

from __future__ import annotations

import pathlib

from experiments import distributed
from experiments import flags as shared
from nucseg_jax.training.stopping import StopRequest

_WORKDIR = shared.define_path("workdir", None, "Folder of the run.", required=True)
shared.define_settings("data", "model", "train")
distributed.define_flags()


def main() -> None:
    """Trains with the settings that the flags give."""
    # JAX's own handler of SIGTERM comes with this: that of the stop must come later.
    distributed.join_processes()
    with StopRequest() as stop:
        config, workdir = shared.config_from_flags(), pathlib.Path(_WORKDIR.value)
        # Not at the top: loader processes import this module, and need no JAX.
        from experiments import training_run

        config = training_run.inherit(config, shared.given(shared.SETTINGS), workdir)
        training_run.run(config, workdir, stop)


if __name__ == "__main__":
    shared.run(main)
