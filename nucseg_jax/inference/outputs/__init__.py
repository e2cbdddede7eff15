"""Files out: label images, masks, probabilities, overlays, tables, outlines, a report.

Each file appears whole or not at all. Writers are fed by the streams of a plane, so
that no output needs the whole of a huge image in memory. The report is in `page`,
which draws with matplotlib and so takes longer to import than the rest.
"""

from nucseg_jax.inference.outputs.pictures import (
    OUTLINE_COLOUR,
    mask_picture,
    probability_picture,
    stretch_contrast,
    write_png,
)
from nucseg_jax.inference.outputs.products import (
    BLOCKS,
    FOLDERS,
    PRODUCTS,
    SUFFIXES,
    check_save,
    create_writers,
)
from nucseg_jax.inference.outputs.summaries import (
    holds_results,
    is_finished,
    merge_tables,
)

__all__ = [
    "BLOCKS",
    "FOLDERS",
    "OUTLINE_COLOUR",
    "PRODUCTS",
    "SUFFIXES",
    "check_save",
    "create_writers",
    "holds_results",
    "is_finished",
    "mask_picture",
    "merge_tables",
    "probability_picture",
    "stretch_contrast",
    "write_png",
]
