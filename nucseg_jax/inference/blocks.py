"""An image in blocks that are segmented apart: what each sees, and whose a nucleus is.

Blocks are the windows of `windows`, made large. Each sees its core and a halo around
it, and the same rule says which nuclei are its own: those that are whole in it and that
no block before it has found. Blocks come in four rounds, like the colours of a chess
board with four: those of one round have no pixel in common, so they may be segmented at
the same time and in any order.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from nucseg_jax.inference import windows

Block = tuple[int, int]  # Its row and column among the blocks.


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Where the blocks of an image lie.

    Attributes:
      height: Of the image, pixels.
      width: Of the image, pixels.
      side: Of a core, pixels; those at the lower and right end may be smaller.
      halo: Pixels that a block sees beyond its core, see `windows.find_nuclei`.
      rim: See `windows.find_nuclei`.

    Raises:
      ValueError: If blocks of one round would overlap.
    """

    height: int
    width: int
    side: int
    halo: int
    rim: int = 1

    def __post_init__(self):
        if self.side < max(2 * self.halo, 1):
            raise ValueError(
                f"blocks of {self.side} pixels are too small for nuclei of up to "
                f"{2 * self.halo}: take larger ones"
            )

    @property
    def counts(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return -(-self.height // self.side), -(-self.width // self.side)

    @property
    def places(self) -> list[Block]:
        """All blocks, row by row."""
        rows, columns = self.counts
        return list(itertools.product(range(rows), range(columns)))

    @property
    def longest(self) -> int:
        """Side of the largest region, pixels."""
        return self.side + 2 * self.halo

    def core(self, block: Block) -> tuple[slice, slice]:
        """Rows and columns that are the block's alone; cores cover the image."""
        return self._part(block, 0)

    def region(self, block: Block) -> tuple[slice, slice]:
        """Rows and columns that the block sees."""
        return self._part(block, self.halo)

    def around(self, block: Block) -> list[Block]:
        """The block and its up to eight neighbours: all that share pixels with it."""
        rows, columns = (
            range(max(n - 1, 0), min(n + 2, count))
            for n, count in zip(block, self.counts, strict=True)
        )
        return list(itertools.product(rows, columns))

    def before(self, block: Block) -> list[Block]:
        """Neighbours of earlier rounds."""
        number = round_of(block)
        return [other for other in self.around(block) if round_of(other) < number]

    def _part(self, block: Block, margin: int) -> tuple[slice, slice]:
        rows, columns = (
            slice(
                max(n * self.side - margin, 0), min((n + 1) * self.side + margin, end)
            )
            for n, end in zip(block, (self.height, self.width), strict=True)
        )
        return rows, columns


def round_of(block: Block) -> int:
    """The round of a block, 0 to 3; no two neighbours have the same."""
    return 2 * (block[0] % 2) + block[1] % 2


def claim(
    blocks: Blocks, block: Block, labels: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Keeps the nuclei that are the block's own.

    Args:
      blocks: Where blocks lie.
      block: Which.
      labels: int32 [h, w] of its region, 0 = background, 1..n = nuclei.
      known: [h, w], above 0 where a block before it has a nucleus.

    Returns:
      int32 [h, w], its own nuclei numbered from 1; 0 = all else.
    """
    return windows.claim(
        labels,
        known,
        blocks.region(block),
        (blocks.height, blocks.width),
        overlap=2 * blocks.halo,
        rim=blocks.rim,
    )


def number_blocks(counts: Mapping[Block, int]) -> dict[Block, int]:
    """Makes ids unique over the image: what is added to those of each block.

    Args:
      counts: Nuclei of each block.
    """
    places = sorted(counts)
    totals = itertools.accumulate((counts[place] for place in places), initial=0)
    return dict(zip(places, totals, strict=False))


def assemble(
    blocks: Blocks,
    part: tuple[slice, slice],
    sources: Iterable[Block],
    load: Callable[[Block], np.ndarray],
    firsts: Mapping[Block, int],
) -> np.ndarray:
    """Puts together what several blocks found in a part of the image.

    Args:
      blocks: Where blocks lie.
      part: Rows and columns of the image.
      sources: Blocks whose own nuclei are wanted.
      load: Gives a block's own nuclei, int32 [h, w] of its region, as from `claim`;
        only what lies in the part is looked at.
      firsts: From `number_blocks`.

    Returns:
      uint32 [h, w], 0 = background, else ids unique over the image.
    """
    found = np.zeros([side.stop - side.start for side in part], np.uint32)
    for source in sources:
        region = blocks.region(source)
        common = [
            slice(max(one.start, other.start), min(one.stop, other.stop))
            for one, other in zip(part, region, strict=True)
        ]
        if any(side.stop <= side.start for side in common):
            continue
        own = load(source)[_within(common, region)].astype(np.uint32)
        here = found[_within(common, part)]
        np.copyto(here, own + np.uint32(firsts[source]), where=own > 0)
    return found


def _within(common: Iterable[slice], part: tuple[slice, slice]) -> tuple[slice, ...]:
    """Counts rows and columns of the image from the beginning of a part of it."""
    return tuple(
        slice(one.start - other.start, one.stop - other.start)
        for one, other in zip(common, part, strict=True)
    )
