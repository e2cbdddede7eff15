"""Joins the tables of all images in an output folder, and renews its report.

    python -m experiments.merge --output=results

`experiments.predict` does so by itself, unless it ran in shards.
"""

from __future__ import annotations

import pathlib
import sys

from experiments import flags as shared
from experiments import output_folder

_OUTPUT = shared.output("Folder with the results of all shards.")


def main() -> int:
    """Merges and tells; returns 1 if files or shards are missing."""
    folder = pathlib.Path(_OUTPUT.value)
    output_folder.read_settings(folder)
    count = output_folder.merge(folder)
    print(f"{count} images -> {folder / 'nuclei.csv'}, summary.csv, report.html")
    failures = list(output_folder.read_failures(folder))
    for _, error in failures:
        print(f"error: {error}", file=sys.stderr)
    missing = output_folder.find_missing_shards(folder)
    for shard in missing:
        print(
            f"error: shard {shard} has not run to its end; run it and merge again",
            file=sys.stderr,
        )
    return 1 if failures or missing else 0


if __name__ == "__main__":
    shared.run(main)
