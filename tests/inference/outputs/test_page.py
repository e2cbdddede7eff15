"""The report: complete, self-contained, safe, and shown by a real browser."""

import html.parser
import json
import os
import pathlib
import re
import shutil
import subprocess
import urllib.parse

import numpy as np
import PIL.Image
import pytest

from nucseg_jax.inference.outputs import create_writers, page, summaries
from nucseg_jax.inference.outputs.style import CSS

EVIL = '<img src=x onerror="alert(1)">&"\'.tif'
VOID = {"meta", "img", "br", "link", "input", "path", "use", "rect"}


class Parsed(html.parser.HTMLParser):
    """Elements, links and text of a page; tags must close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg"} & set(self._open):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self):
        """Every attribute's value, those of charts' name spaces left out."""
        return [
            value or ""
            for _, attributes in self.elements
            for name, value in attributes.items()
            if not name.startswith("xmlns")
        ]


def run(folder, name, plane, save=("overlay", "table"), **info):
    info = type(plane.info)(**{**vars(plane.info), "name": name, **info})
    with create_writers(save, folder, pathlib.PurePath(name), info) as writers:
        plane.feed(writers)


def report(folder, **options):
    options = {"title": "Nuclei", "settings": {}, **options}
    path = page.write_report(folder, **options)
    assert path == folder / "report.html"
    return Parsed(path.read_text("utf-8"))


def words(parsed):
    return re.sub(r"\s+", " ", " ".join(parsed.text))


def test_the_page_has_what_the_summaries_have(tmp_path, plane):
    for name in ("a", "b/c"):
        run(tmp_path, name, plane)
    settings = {"threshold": 0.5, "checkpoint": "runs/demo"}
    failures = [("bad.png", "bad.png: is damaged")]
    parsed = report(tmp_path, title="My run", settings=settings, failures=failures)
    text = words(parsed)
    assert "<title>My run</title>" in (tmp_path / "report.html").read_text("utf-8")
    for expected in (
        "Images 2",
        "Nuclei 60",
        "Failed 1",
        "Density 4,762 /megapixel",
        "bad.png bad.png: is damaged",
        "threshold 0.5",
        "checkpoint runs/demo",
        "90 × 70 30 4,762 /megapixel",
    ):
        assert expected in text
    assert len(parsed.all("svg")) == 2
    assert [p.name for p in tmp_path.glob("*") if p.is_file()] == ["report.html"]


def test_no_id_of_the_page_stands_twice(tmp_path, plane):
    """Each chart is a picture with ids of its own."""
    run(tmp_path, "a", plane)
    report(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) > 20 and len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', text):
        assert target in ids


def test_links_lead_to_the_files(tmp_path, plane):
    run(tmp_path, "b/a & b #1?%20.x", plane, save=("labels", "overlay", "table"))
    links = [a["href"] for a in report(tmp_path).all("a")]
    targets = {(tmp_path / urllib.parse.unquote(link)).resolve() for link in links}
    (summary,) = summaries.read_summaries(tmp_path)
    outputs = dict(summary["outputs"])
    del outputs["thumbnail"]
    assert targets == {(tmp_path / path).resolve() for path in outputs.values()}
    assert all(target.is_file() for target in targets)


def test_nothing_is_fetched(tmp_path, plane):
    run(tmp_path, "a", plane)
    parsed = report(tmp_path)
    assert not {"script", "link", "iframe", "object"} & {e for e, _ in parsed.elements}
    assert not any("//" in v for v in parsed.values() if not v.startswith("data:"))
    assert all(
        i["src"].startswith("data:image/jpeg;base64,") for i in parsed.all("img")
    )
    assert "@import" not in CSS and "url(" not in CSS
    (policy,) = [m["content"] for m in parsed.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")


def test_names_and_reasons_cannot_become_html(tmp_path, plane):
    run(tmp_path, EVIL, plane, source=pathlib.Path(EVIL))
    parsed = report(
        tmp_path, title=EVIL, settings={EVIL: EVIL}, failures=[(EVIL, EVIL)]
    )
    assert all("onerror" not in attributes for _, attributes in parsed.elements)
    assert not any(attributes.get("src") == "x" for attributes in parsed.all("img"))
    # Title, heading, image, failure, setting; as text.
    assert words(parsed).count(EVIL) == 7


def test_names_that_are_no_utf8_are_shown_and_linked(tmp_path, plane):
    name = os.fsdecode(b"caf\xe9")
    run(tmp_path, name, plane)
    parsed = report(tmp_path, failures=[(name, f"{name}: broken")])
    assert words(parsed).count("caf\ufffd") == 3
    assert any("caf%E9.csv" in a["href"] for a in parsed.all("a"))


def test_a_page_of_no_images(tmp_path):
    text = words(report(tmp_path, failures=[("a", "no image")]))
    assert "Images 0" in text and "Nuclei 0" in text


def test_images_without_nuclei(tmp_path, make_plane):
    run(tmp_path, "a", make_plane(np.zeros((40, 50), np.int32)))
    text = words(report(tmp_path))
    assert "50 × 40 0 0 /megapixel –" in text


def test_units_are_kept_apart(tmp_path, plane, make_plane, draw_nuclei):
    run(tmp_path, "a", plane)
    calibrated = make_plane(draw_nuclei(70, 90), pixel_size=0.5)
    run(tmp_path, "b", calibrated, pixel_size=0.5)
    text = words(report(tmp_path))
    assert "Area of nuclei (px)" in text and "Area of nuclei (µm²)" in text
    # No common density: the area of one of them is unknown.
    assert "Density 4,762 /megapixel" in text
    assert "19,048 /mm²" in text


def test_many_images_keep_the_page_small(tmp_path, plane, monkeypatch):
    run(tmp_path, "0", plane)
    first = json.loads((tmp_path / "tables" / "0.json").read_text())
    for index in range(1, 30):
        text = json.dumps({**first, "name": f"image {index}"})
        (tmp_path / "tables" / f"{index:02}.json").write_text(text)
    monkeypatch.setattr(page, "MOST_THUMBNAILS", 5)
    monkeypatch.setattr(page, "MOST_ROWS", 12)
    parsed = report(tmp_path)
    assert len(parsed.all("img")) == 5
    assert len(parsed.all("tr")) == 1 + 12
    text = words(parsed)
    assert "Of 30 images, the first 12 are listed, 5 of them with a picture" in text
    assert "Nuclei 900" in text


def test_a_thumbnail_that_was_deleted_is_left_out(tmp_path, plane):
    run(tmp_path, "a", plane)
    (tmp_path / "thumbnails" / "a.jpg").unlink()
    assert not report(tmp_path).all("img")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (float("nan"), "–"),
        (0.01234, "0.0123"),
        (9.999, "10.00"),
        (12.34, "12.3"),
        (999.6, "1,000"),
        (123456.7, "123,457"),
    ],
)
def test_numbers_have_three_digits_or_all_whole_ones(value, text):
    assert page._number(value) == text


def find_chromium():
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium or Chrome on this machine")


def browse(folder, *options):
    """Opens the report in a browser without a window; returns what it prints."""
    command = [
        find_chromium(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr",
        *options,
        (folder / "report.html").as_uri(),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "dark"), [("1", False), ("0", True)])
def test_a_browser_shows_the_page(tmp_path, plane, scheme, dark):
    for name in ("a", "b", EVIL):
        run(tmp_path, name, plane)
    page.write_report(
        tmp_path, title="Nuclei <of> all", settings={"a": 1}, failures=[("x", "y")]
    )
    scheme_option = f"--blink-settings=preferredColorScheme={scheme}"
    dom = browse(tmp_path, "--dump-dom", scheme_option)
    assert "<title>Nuclei &lt;of&gt; all</title>" in dom
    assert dom.count("<img") == 3
    shot = tmp_path / "shot.png"
    browse(tmp_path, f"--screenshot={shot}", "--window-size=1200,1600", scheme_option)
    with PIL.Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape == (1600, 1200, 3)
    background = pixels[5, 5]
    assert (background.mean() < 60) == dark
    # Ink, bars of the charts, and thumbnails, which are noise of all colours.
    differs = np.abs(pixels - background).max(axis=2) > 60
    assert 0.02 < differs.mean() < 0.6
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 2000


@pytest.mark.slow
def test_a_browser_prints_the_page(tmp_path, plane):
    for index in range(30):
        run(tmp_path, f"{index:02}", plane, save=())
    page.write_report(tmp_path, title="Nuclei", settings={})
    pdf = tmp_path / "report.pdf"
    browse(tmp_path, f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 6
