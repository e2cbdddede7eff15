"""Pictures: they open, and show what they should."""

import matplotlib.figure
import numpy as np
import PIL.Image
import pytest

from nucseg_jax.evaluation import figures
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
        {"epoch": float(epoch), "step": 10.0 * epoch}
        | {key: float(rng.random()) for key in keys}
        for epoch in range(num_epochs)
    ]


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
