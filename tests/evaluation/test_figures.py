"""Pictures: they open, and show what they should."""

import matplotlib.figure
import numpy as np
import PIL.Image
import pytest

from nucseg_jax.evaluation import figures
from nucseg_jax.evaluation.instance_metrics import THRESHOLDS
from nucseg_jax.inference import outputs

ORANGE, BLUE = (255, 127, 14), (31, 119, 255)  # False positive, false negative.
NAMES = ("loss", "accuracy", "iou", "auc")


def read(path):
    with PIL.Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def count_colour(pixels, colour):
    return int((pixels == np.array(colour, np.uint8)).all(axis=-1).sum())


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved during a test."""
    saved = []
    savefig = matplotlib.figure.Figure.savefig

    def spy(figure, *args, **kwargs):
        saved.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    return saved


def make_rows(num_epochs):
    rng = np.random.default_rng(0)
    keys = [f"{part}_{name}" for part in ("train", "val") for name in NAMES]
    return [
        {"epoch": float(epoch + 1), "step": 10.0 * (epoch + 1)}
        | {key: float(rng.random()) for key in keys}
        for epoch in range(num_epochs)
    ]


def test_a_batch_is_drawn_with_each_of_its_targets(tmp_path, drawn):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 9, 8, 3), np.uint8)
    masks = rng.random((2, 9, 8, 2), np.float32)
    masks[1, ..., 0] = 1
    figures.draw_batch(images, masks, ("foreground", "distance"), tmp_path / "a.png")
    (figure,) = drawn
    shown = [axes.images[0] for axes in figure.axes]
    for picture, expected in zip(
        shown,
        [images[0], *np.moveaxis(masks[0], -1, 0)]
        + [images[1], *np.moveaxis(masks[1], -1, 0)],
        strict=True,
    ):
        np.testing.assert_array_equal(picture.get_array(), expected)
    # What is foreground everywhere is white, not stretched to black.
    assert shown[4].get_clim() == (0, 1)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["image", "foreground", "distance"] * 2


@pytest.mark.parametrize("num_epochs", [1, 4])
def test_curves_show_every_epoch_of_training_and_validation(
    tmp_path, drawn, num_epochs
):
    rows = make_rows(num_epochs)
    figures.draw_curves(rows, tmp_path / "new" / "curves.png")
    (figure,) = drawn
    for axes, name in zip(figure.axes, NAMES, strict=True):
        for line, part in zip(axes.lines, ("train", "val"), strict=True):
            values = [row[f"{part}_{name}"] for row in rows]
            np.testing.assert_array_equal(line.get_xdata(), 1 + np.arange(num_epochs))
            np.testing.assert_array_equal(line.get_ydata(), values)
        assert name in axes.get_title().lower()
    picture = read(tmp_path / "new" / "curves.png")
    assert count_colour(picture, (217, 95, 2)) > 20
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curves.png"]


def test_curves_are_drawn_over_the_old_ones(tmp_path):
    path = tmp_path / "curves.png"
    figures.draw_curves(make_rows(1), path)
    before = read(path)
    figures.draw_curves(make_rows(3), str(path))
    assert (read(path) != before).any()
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_is_not_finite_leaves_a_gap(tmp_path):
    rows = make_rows(3)
    rows[1]["val_auc"] = float("nan")
    figures.draw_curves(rows, tmp_path / "curves.png")
    assert read(tmp_path / "curves.png").std() > 0


@pytest.mark.parametrize("old", [b"", b"an older picture"])
def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, old):
    path = tmp_path / "curves.png"
    if old:
        path.write_bytes(old)

    def fail(figure, file, **kwargs):
        file.write_bytes(b"half a pict")
        raise OSError("no space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
    with pytest.raises(OSError, match="no space"):
        figures.draw_curves(make_rows(1), path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([old] if old else [])


def make_panel():
    """A prediction that is one block too far to the right."""
    ramp = np.linspace(0, 1, 24, dtype=np.float32)
    image = np.repeat(np.broadcast_to(ramp, (20, 24))[..., None], 3, axis=-1)
    mask, foreground = np.zeros((2, 20, 24), bool)
    mask[4:14, 3:13] = True
    foreground[4:14, 8:18] = True
    return image, mask, foreground


def on_outline(foreground, row, column):
    """Whether a pixel is foreground with background above, below, left or right."""
    around = ((-1, 0), (1, 0), (0, -1), (0, 1))
    return foreground[row, column] and not all(
        foreground[row + dy, column + dx] for dy, dx in around
    )


def test_draw_errors_tints_the_wrong_pixels_and_no_other():
    image, mask, foreground = make_panel()
    before = image.copy()
    picture = figures.draw_errors(image, mask, foreground)
    expected = outputs.stretch_contrast(image) * 255
    for place in np.ndindex(mask.shape):
        if on_outline(foreground, *place):
            expected[place] = (255, 214, 0)
        elif foreground[place] and not mask[place]:
            expected[place] = 0.35 * expected[place] + 0.65 * np.array(ORANGE)
        elif mask[place] and not foreground[place]:
            expected[place] = 0.35 * expected[place] + 0.65 * np.array(BLUE)
    assert picture.dtype == np.uint8
    np.testing.assert_allclose(picture, expected, atol=1)
    np.testing.assert_array_equal(image, before)


def test_draw_errors_of_nothing_wrong_shows_the_image():
    image, mask, _ = make_panel()
    empty = np.zeros_like(mask)
    expected = outputs.stretch_contrast(image) * 255
    picture = figures.draw_errors(image, empty, empty)
    np.testing.assert_allclose(picture, expected, atol=1)


def test_predictions_get_one_row_of_four_pictures_each(tmp_path, drawn):
    image, mask, foreground = make_panel()
    panels = {
        "best": (image, mask, mask),
        "worst": (image[:12], mask[:12], foreground[:12]),
    }
    figures.draw_predictions(panels, tmp_path / "predictions.png")
    (figure,) = drawn
    assert len(figure.axes) == 8
    shown = [axes.images[0].get_array() for axes in figure.axes]
    np.testing.assert_array_equal(shown[1], mask)
    np.testing.assert_array_equal(shown[2], mask)
    np.testing.assert_array_equal(shown[5], mask[:12])
    np.testing.assert_array_equal(shown[6], foreground[:12])
    np.testing.assert_array_equal(
        shown[7], figures.draw_errors(image[:12], mask[:12], foreground[:12])
    )
    assert [figure.axes[i].get_ylabel() for i in (0, 4)] == ["best", "worst"]
    picture = read(tmp_path / "predictions.png")
    for colour in (ORANGE, BLUE, outputs.OUTLINE_COLOUR):
        assert count_colour(picture, colour) > 20
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.png"]


@pytest.mark.parametrize(
    "name", ["0$^well_$3", "a$b", b"im\xe9".decode(errors="surrogateescape")]
)
def test_any_name_of_a_file_can_stand_in_a_picture(tmp_path, name):
    """What Matplotlib would set as a formula, and bytes that are no text."""
    image, mask, foreground = make_panel()
    figures.draw_predictions({name: (image, mask, foreground)}, tmp_path / "a.png")
    figures.draw_nuclei([make_nuclei(title=name)], tmp_path / "b.png")
    figures.draw_average_precision({name: [0.5] * 10}, tmp_path / "c.png")
    assert all(read(path).std() > 0 for path in tmp_path.iterdir())


SIDE = 40
MATCHED, MISSED, FALSE = (86, 180, 233), (213, 94, 0), (240, 228, 66)


def make_nuclei(title="best: a", shape=(SIDE, SIDE)):
    """Two nuclei are found, one of them with another id; one is missed, one false."""
    true_labels = np.zeros(shape, np.int32)
    true_labels[2:12, 2:12] = 3
    true_labels[2:12, 12:22] = 90_000_000  # Touches the one before.
    true_labels[20:30, 5:13] = 5
    pred_labels = np.where(true_labels == 5, 0, true_labels)
    pred_labels[pred_labels == 3] = 8
    pred_labels[25:35, 28:38] = 1
    image = np.repeat(np.float32(true_labels > 0)[..., None], 3, axis=-1) * 0.5
    return figures.NucleiPanel(title, image, true_labels, pred_labels)


def outlines_of(axes):
    """Colour -> bounding boxes of the lines that are drawn, in pixel indices."""
    boxes = {}
    for lines in axes.collections:
        if lines.get_segments():
            colour = tuple(
                np.round(255 * lines.get_colors()[0][:3]).astype(int).tolist()
            )
            boxes[colour] = [
                (*np.ceil(points.min(axis=0)), *np.floor(points.max(axis=0)))
                for points in lines.get_segments()
            ]
    return boxes


def test_outlines_tell_by_colour_what_is_matched_missed_and_false(tmp_path, drawn):
    figures.draw_nuclei([make_nuclei()], tmp_path / "predictions.png")
    (figure,) = drawn
    image, truth, prediction = figure.axes
    assert outlines_of(image) == {}
    # x and y of the first and the last pixel.
    found = [(2, 2, 11, 11), (12, 2, 21, 11)]
    assert outlines_of(truth) == {MATCHED: found, MISSED: [(5, 20, 12, 29)]}
    assert outlines_of(prediction) == {MATCHED: found, FALSE: [(28, 25, 37, 34)]}
    picture = read(tmp_path / "predictions.png")
    for colour in (MATCHED, MISSED, FALSE):
        assert count_colour(picture, colour) > 20
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.png"]


def test_titles_count_the_nuclei(tmp_path, drawn):
    panels = [make_nuclei("best: a"), make_nuclei("worst: b", shape=(60, SIDE))]
    figures.draw_nuclei(panels, tmp_path / "predictions.png")
    titles = [axes.get_title() for axes in drawn[0].axes]
    counts = ["truth: 3 nuclei, 1 missed", "prediction: 3 nuclei, 1 false"]
    assert titles == ["best: a", *counts, "worst: b", *counts]
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["matched (IoU > 0.5)", "missed", "false"]


@pytest.mark.parametrize("shape", [(SIDE, 3 * SIDE), (SIDE, SIDE), (9 * SIDE, SIDE)])
def test_nothing_is_clipped_or_covered(tmp_path, drawn, shape):
    """Titles, pictures and legend lie within the figure and apart from each other."""
    title = "median: 0123456789abcde…, mean AP 0.000"
    panels = [make_nuclei(title, shape), make_nuclei(title)]
    figures.draw_nuclei(panels, tmp_path / "predictions.png")
    (figure,) = drawn
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes.append(figure.legends[0].get_window_extent())
    for index, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_an_image_without_nuclei_is_shown_too(tmp_path, drawn):
    empty = np.zeros((SIDE, SIDE), np.int32)
    panel = figures.NucleiPanel(
        "a", np.zeros((SIDE, SIDE, 3), np.float32), empty, empty
    )
    figures.draw_nuclei([panel], tmp_path / "predictions.png")
    assert [outlines_of(axes) for axes in drawn[0].axes] == [{}] * 3
    assert drawn[0].axes[1].get_title() == "truth: 0 nuclei, 0 missed"


def test_small_nuclei_get_thin_outlines(tmp_path, drawn):
    fine = np.zeros((400, 400), np.int32)
    fine[::8, ::8] = np.arange(1, 2501).reshape(50, 50)
    image = np.zeros((400, 400, 3), np.float32)
    panels = [figures.NucleiPanel("fine", image, fine, fine), make_nuclei()]
    figures.draw_nuclei(panels, tmp_path / "predictions.png")
    widths = [drawn[0].axes[i].collections[0].get_linewidths()[0] for i in (1, 4)]
    assert widths == [pytest.approx(0.6), pytest.approx(1.4)]


def test_average_precision_is_drawn_against_the_threshold(tmp_path, drawn):
    curves = {
        f"group {i}": np.linspace(0.9 - 0.1 * i, 0, 10).tolist() for i in range(9)
    }
    figures.draw_average_precision(curves, tmp_path / "average_precision.png")
    (axes,) = drawn[0].axes
    for line, ap in zip(axes.lines, curves.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), THRESHOLDS)
        np.testing.assert_array_equal(line.get_ydata(), ap)
    assert axes.lines[0].get_color() == "black"
    legend = drawn[0].legends[0]
    assert legend.get_texts()[0].get_text() == "0.450  group 0"
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
    assert read(tmp_path / "average_precision.png").std() > 0


def test_heads_stand_at_their_time_and_accuracy(tmp_path, drawn):
    heads = {
        "head 1": {"s_per_image": 0.02, "iou": 0.8},
        "all": {"s_per_image": 0.07, "iou": 0.85},
    }
    figures.draw_heads(heads, tmp_path / "heads.png")
    (axes,) = drawn[0].axes
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xydata(), [[20, 0.8], [70, 0.85]])
    assert [text.get_text() for text in axes.texts] == list(heads)
    assert read(tmp_path / "heads.png").std() > 5
