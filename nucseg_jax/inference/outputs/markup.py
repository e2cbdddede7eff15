"""What pages have in common: their head, their settings, and how text becomes HTML."""

from __future__ import annotations

import datetime
import html
import os
from collections.abc import Iterable, Mapping, Sequence

from nucseg_jax.inference.outputs.style import CSS

# Nothing may be fetched, whatever a file name says.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
END = "</body>\n</html>\n"


def begin(title: str) -> str:
    """Everything up to the first section; the heading tells the time, too."""
    made = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="note">{made}</p>\n'
    )


def totals(values: Iterable[tuple[str, str]]) -> str:
    """Large figures side by side, each with its name; they are HTML."""
    items = "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in values)
    return f'<dl class="totals">{items}</dl>\n'


def settings_section(settings: Mapping[str, object]) -> str:
    """A table of names and values; nothing of none."""
    rows = "".join(
        f"<tr><th>{escape(str(name))}</th><td>{escape(_shown(value))}</td></tr>\n"
        for name, value in settings.items()
    )
    if not rows:
        return ""
    return f'<h2>Settings</h2>\n<table class="settings"><tbody>{rows}</tbody></table>\n'


def _shown(value: object) -> str:
    return "–" if value is None else str(value)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        first, *numbers = map(escape, cells)
        rest = "".join(f'<{tag} class="number">{cell}</{tag}>' for cell in numbers)
        return f"<tr><{tag}>{first}</{tag}>{rest}</tr>\n"

    body = "".join(line(row, "td") for row in rows)
    head = line(header, "th")
    return f"<table>\n<thead>{head}</thead>\n<tbody>{body}</tbody>\n</table>\n"


def escape(text: str) -> str:
    """Escapes what a file name or a user brought in."""
    return html.escape(os.fsencode(text).decode(errors="replace"))
