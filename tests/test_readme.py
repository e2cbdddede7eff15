"""The numbers of README and notes are those of the files in experiments/results."""

import pathlib
import re

import pytest

from experiments import tables

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTES = (ROOT / "BUILD_NOTES.md").read_text(encoding="utf-8")
# Tables of words alone stay as they are.
NUMBER = re.compile(r"(?<![\d.])\.\d{2,}|\d\.\d")


@pytest.mark.parametrize("table", tables.TABLES, ids=lambda t: t.write.__name__)
def test_tables_are_as_the_results_say(table):
    text = table.read(tables.RESULTS)
    assert text and text in README


@pytest.mark.parametrize("table", tables.NOTES_TABLES, ids=lambda t: t.write.__name__)
def test_tables_of_the_notes_are_as_the_results_say(table):
    text = table.read(tables.RESULTS)
    assert text and text in NOTES


def test_no_other_table_holds_numbers():
    text = README
    for table in tables.TABLES:
        text = text.replace(table.read(tables.RESULTS), "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    measured = [row for row in rows if NUMBER.search(row)]
    assert all("IoU .50:.05:.95" in row or "threshold .5" in row for row in measured), (
        measured
    )


def test_files_that_it_links_to_are_there():
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
