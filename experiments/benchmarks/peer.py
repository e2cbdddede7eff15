"""Runs another implementation of the same network, to be timed in alternation."""

from __future__ import annotations

import json
import shlex
import subprocess


class PeerError(OSError):
    """The peer's command failed; the message holds what it printed."""


def run_peer(
    command: str,
    *,
    batch_size: int,
    features: tuple[int, ...],
    size: int,
    dtype: str,
    steps: int,
) -> dict[str, float | str]:
    """Runs the peer once and returns the JSON object that it prints last.

    Args:
      command: Program and first arguments, for example "python torch_unetpp.py". It
        must take --batch, --features, --size, --dtype and --steps, and print
        infer_s_per_image and train_s_per_image.
      batch_size: Images a batch.
      features: Channels of each level.
      size: Side of the images, pixels.
      dtype: "float32" or "bfloat16".
      steps: Of how many runs the peer tells the fastest.

    Raises:
      PeerError: If it fails or prints no JSON.
    """
    arguments = {
        "--batch": str(batch_size),
        "--features": ",".join(map(str, features)),
        "--size": str(size),
        "--dtype": dtype,
        "--steps": str(steps),
    }
    full = [
        *shlex.split(command),
        *(part for pair in arguments.items() for part in pair),
    ]
    result = subprocess.run(full, capture_output=True, text=True, check=False)
    try:
        return json.loads(result.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        output = (result.stderr or result.stdout)[-500:]
        raise PeerError(
            f"{command} exited with {result.returncode}: {output}"
        ) from error
