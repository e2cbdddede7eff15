"""Joins the tables of all images in an output folder, and renews its report.

    python -m experiments.merge --output=results

`experiments.predict` does so by itself, unless it ran in shards.
"""

from __future__ import annotations

import pathlib

from experiments import flags as shared
from experiments import output_folder

_OUTPUT = shared.output("Folder with the results of all shards.")


def main() -> None:
    """Merges and tells."""
    folder = pathlib.Path(_OUTPUT.value)
    output_folder.read_settings(folder)
    count = output_folder.merge(folder)
    print(f"{count} images -> {folder / 'nuclei.csv'}, summary.csv, report.html")


if __name__ == "__main__":
    shared.run(main)
