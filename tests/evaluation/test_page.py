"""The page of an evaluation: its numbers are the evaluation's, and it is safe."""

import dataclasses
import re

import numpy as np
import PIL.Image
import pytest

from nucseg_jax.evaluation import page
from nucseg_jax.evaluation.evaluate import evaluate


@pytest.fixture
def evaluation(segmenter, make_example):
    """Three images: found, half found, and with a name that would be HTML."""
    red, labels = np.zeros((2, 20, 30), np.uint8)
    red[2:8, 2:8] = red[12:18, 2:8] = 255
    labels[2:8, 2:8], labels[12:18, 2:8] = 1, 2
    examples = [
        make_example("good", red, labels, columns={"modality": "<b>dark"}),
        make_example("poor", red * (labels == 1), labels, columns={"modality": "x"}),
    ]
    named = dataclasses.replace(examples[0], id="<img src=x>")
    return evaluate(segmenter, [*examples, named], threshold=0.5)


def write(evaluation, folder, **pictures):
    path = folder / "report.html"
    page.write_page(
        evaluation, path, title="<i>", settings={"mode": "<u>"}, pictures=pictures
    )
    return path.read_text()


def rows_of(text, heading):
    """Cells of each row of the table below a heading."""
    body = text.split(f"<h2>{heading}")[1].split("<tbody>")[1].split("</tbody>")[0]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.splitlines()]


def test_numbers_are_those_of_the_evaluation(evaluation, tmp_path):
    text = write(evaluation, tmp_path)
    images = rows_of(text, "Images, the worst first")
    assert images[0] == ["poor", "0.500", "0.500", "0.500", "2", "1"]
    assert {row[0] for row in images[1:]} == {"good", "&lt;img src=x&gt;"}
    assert all(row[1:] == ["1.000"] * 3 + ["2", "2"] for row in images[1:])
    pixels = {row[0]: row[1:] for row in rows_of(text, "Pixels")}
    assert pixels["IoU (Jaccard)"] == [f"{5 / 6:.4f}", f"{2.5 / 3:.4f}"]
    kinds = {row[0]: row[1:] for row in rows_of(text, "Kinds of images")}
    assert kinds["x"] == ["1", "0.500", "0.500", "0.500", "1.0"]
    assert kinds["&lt;b&gt;dark"][0] == "2"


def test_nothing_becomes_html_and_nothing_is_fetched(evaluation, tmp_path):
    picture = tmp_path / "a.png"
    PIL.Image.fromarray(np.zeros((3, 3), np.uint8)).save(picture)
    text = write(evaluation, tmp_path, caption=picture)
    assert not re.search("<(i|u|b|img src=x)>", text)
    assert re.findall(r'src="([^"]{22})', text) == ["data:image/png;base64,"]
    assert "default-src 'none'" in text


def test_a_long_list_is_cut_and_says_so(evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_ROWS", 2)
    text = write(evaluation, tmp_path)
    assert len(rows_of(text, "Images, the worst first")) == 2
    assert "2 of 3; metrics.json has them all" in text
