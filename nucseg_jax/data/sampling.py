"""How often each example comes in an epoch of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nucseg_jax.data.index import DatasetError, Example


def count_repeats(examples: Sequence[Example], column: str) -> list[int]:
    """Counts how often each example comes in an epoch.

    Examples of the most frequent value of the column come once. A value that is n times
    as rare has its examples repeated by the square root of n, rounded: rare kinds are
    seen more often, but not so often that they are learned by heart.

    Args:
      examples: The training examples.
      column: Of index.csv; if empty, every example comes once.

    Returns:
      One positive number an example.

    Raises:
      DatasetError: If an example lacks the column.
    """
    if not column:
        return [1] * len(examples)
    for example in examples:
        if column not in example.columns:
            raise DatasetError(f"balance_by: {example.id} has no column {column!r}")
    values = [example.columns[column] for example in examples]
    sizes = Counter(values)
    most = max(sizes.values())
    return [round((most / sizes[value]) ** 0.5) for value in values]
