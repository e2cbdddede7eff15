"""Scores -> one page to look at, which needs no other file and no network."""

from __future__ import annotations

import base64
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from nucseg_jax.evaluation.evaluate import Evaluation, ImageScore
from nucseg_jax.evaluation.report import INSTANCE_ROWS, PIXEL_ROWS
from nucseg_jax.files import writing_text
from nucseg_jax.inference.outputs import markup

# More would make the page slow to open; metrics.json has all.
MOST_ROWS = 2000


def write_page(
    evaluation: Evaluation,
    path: pathlib.Path,
    *,
    title: str,
    settings: Mapping[str, object],
    pictures: Mapping[str, pathlib.Path],
) -> None:
    """Writes the page.

    Args:
      evaluation: The scores.
      path: The HTML file.
      title: Heading.
      settings: What was scored and how, to print.
      pictures: Caption -> PNG file; they come into the page.

    Raises:
      OSError: If it cannot be written.
    """
    with writing_text(path) as file:
        file.writelines(_page(evaluation, title, settings, pictures))


def _page(
    evaluation: Evaluation,
    title: str,
    settings: Mapping[str, object],
    pictures: Mapping[str, pathlib.Path],
) -> Iterator[str]:
    yield markup.begin(title)
    yield markup.totals(_totals(evaluation))
    yield from (_figure(caption, path) for caption, path in pictures.items())
    yield "<h2>Pixels</h2>\n"
    yield _metrics(PIXEL_ROWS, evaluation.pooled(), evaluation.per_image_mean())
    yield from _nuclei_sections(evaluation)
    yield from _images_section(evaluation.ranked())
    yield markup.settings_section(settings)
    yield markup.END


def _totals(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    yield "Images", f"{len(evaluation.scores):,}"
    yield "Pixel IoU", f"{evaluation.pooled()['iou']:.3f} <small>pooled</small>"
    if evaluation.instance_counts:
        mean = evaluation.mean_instances()
        yield "Nuclei", f"{evaluation.pooled_instances()['num_true']:,}"
        yield "Mean AP", f"{mean['mean_ap']:.3f} <small>an image</small>"
        yield "AP50", f"{mean['ap50']:.3f} <small>an image</small>"
        yield "Count error", f"{mean['count_error']:.1f} <small>an image</small>"


def _figure(caption: str, path: pathlib.Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<h2>{markup.escape(caption)}</h2>\n"
        f'<figure class="wide"><img src="data:image/png;base64,{data}" '
        f'alt="{markup.escape(caption)}"></figure>\n'
    )


def _metrics(
    names: Mapping[str, str], pooled: Mapping[str, float], mean: Mapping[str, float]
) -> str:
    rows = [
        (title, f"{pooled[name]:.4f}", f"{mean[name]:.4f}")
        for name, title in names.items()
    ]
    return markup.table(("", "pooled", "mean of images"), rows)


def _nuclei_sections(evaluation: Evaluation) -> Iterator[str]:
    yield "<h2>Nuclei</h2>\n"
    if not evaluation.instance_counts:
        yield (
            '<p class="note">The truth is binary masks, in which nuclei that touch are '
            "one: nuclei cannot be scored.</p>\n"
        )
        return
    pooled, mean = evaluation.pooled_instances(), evaluation.mean_instances()
    yield _metrics(INSTANCE_ROWS, pooled, mean)
    groups = evaluation.by_modality()
    if groups:
        header = ("Modality", "images", "pixel IoU", "mean AP", "AP50", "count error")
        rows = [
            (
                name,
                f"{group['num_images']}",
                f"{group['pixel_iou']:.3f}",
                f"{group['mean_ap']:.3f}",
                f"{group['ap50']:.3f}",
                f"{group['count_error']:.1f}",
            )
            for name, group in groups.items()
        ]
        yield "<h2>Kinds of images</h2>\n" + markup.table(header, rows)


def _images_section(ranked: Sequence[ImageScore]) -> Iterator[str]:
    yield "<h2>Images, the worst first</h2>\n"
    if len(ranked) > MOST_ROWS:
        yield (
            f'<p class="note">{MOST_ROWS:,} of {len(ranked):,}; metrics.json has them '
            "all.</p>\n"
        )
    header = ("Image", "pixel IoU", "mean AP", "AP50", "nuclei", "predicted")
    yield markup.table(header, map(_image_row, ranked[::-1][:MOST_ROWS]))


def _image_row(score: ImageScore) -> tuple[str, ...]:
    nuclei = score.instances
    if nuclei is None:
        return score.example.id, f"{score.counts.iou:.3f}", "–", "–", "–", "–"
    ratios = nuclei.ratios()
    return (
        score.example.id,
        f"{score.counts.iou:.3f}",
        f"{ratios['mean_ap']:.3f}",
        f"{ratios['ap50']:.3f}",
        f"{nuclei.num_true:,}",
        f"{nuclei.num_pred:,}",
    )
