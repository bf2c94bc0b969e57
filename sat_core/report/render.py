"""How a table looks in text and as a page of HTML; LaTeX is beside. Knows nothing of what the numbers mean."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pandas as pd

MISSING, TRIVIAL, STALE = "—", "†", "‡"
OWN_LINES = ("95 %", "last epoch", "seeds", "seconds")
"""Labels of the smaller lines that come before those of published numbers."""


def wrapped(name: str) -> str:
    """A name in short lines, for the head of a narrow column."""
    return re.sub(r" (?=et al|\[|\+|curriculum)", "\n", name)


@dataclass(frozen=True)
class Cell:
    """What a reader sees of one cell: a number, its spread, and smaller lines below it, by label."""

    text: str = MISSING
    spread: str = ""
    below: dict[str, str] = field(default_factory=dict)
    best: bool = False
    trivial: bool = False
    stale: bool = False

    @property
    def plain(self) -> str:
        marks = TRIVIAL * self.trivial + STALE * self.stale
        return f"{self.text}{f' ± {self.spread}' if self.spread else ''}{f' {marks}' if marks else ''}"


@dataclass(frozen=True)
class Sheet:
    """A table for readers: a frame of :class:`Cell`, what must be known beside it, and the numbers for its csv."""

    cells: pd.DataFrame
    note: str
    data: pd.DataFrame


def markdown(sheet: Sheet) -> str:
    """The table in text, then its note."""

    def mark(cell: Cell) -> str:
        return f"**{cell.plain}**" if cell.best else cell.plain

    names, lines = [], []
    for name, label, line in spread_out(sheet.cells, mark, str):
        names.append([part.replace("|", "\\|") for part in ([*name[:-1], f"↳ {label}"] if label else name)])
        lines.append(line)
    flat = pd.DataFrame([[*name, *line] for name, line in zip(names, lines, strict=True)])
    titles = [" ".join(column) if isinstance(column, tuple) else column for column in sheet.cells.columns]
    titles = [title.replace("\n", " ").replace("|", "\\|") for title in titles]
    headers = [*([""] * (flat.shape[1] - len(titles) - 1)), "defense", *titles]
    return f"{flat.to_markdown(index=False, headers=headers, disable_numparse=True)}\n\n{sheet.note}\n"


def spread_out(
    cells: pd.DataFrame, mark: Callable[[Cell], str], small: Callable[[str], str]
) -> Iterator[tuple[list[str], str, list[str]]]:
    """Row by row (name, "", texts), each followed by its smaller lines (name, label, texts)."""
    for index, row in cells.iterrows():
        name = list(index) if isinstance(index, tuple) else [index]
        yield name, "", [mark(cell) for cell in row]
        labels = dict.fromkeys(label for cell in row for label in cell.below)
        for label in sorted(labels, key=lambda label: label not in OWN_LINES):
            yield name, label, [small(cell.below[label]) if label in cell.below else "" for cell in row]


STYLE = [
    {"selector": "", "props": "border-collapse: collapse; font-family: sans-serif; font-variant-numeric: tabular-nums"},
    {"selector": "caption", "props": "caption-side: bottom; text-align: left; padding-top: 1em; max-width: 60em"},
    {
        "selector": "th, td",
        "props": "padding: 0.3em 0.8em; text-align: right; vertical-align: top; white-space: nowrap",
    },
    {"selector": "thead th", "props": "text-align: center"},
    {"selector": "tbody th", "props": "text-align: left"},
    {"selector": "thead", "props": "border-top: 2px solid; border-bottom: 1px solid"},
    {"selector": "tbody", "props": "border-bottom: 2px solid"},
]


def as_html(sheet: Sheet, title: str) -> str:
    """A page with the table, whose smaller lines stand within their cells, and its note."""

    def mark(cell: Cell) -> str:
        text = html.escape(cell.plain)
        text = f"<strong>{text}</strong>" if cell.best else text
        text = f'<span style="color: #c00000">{text}</span>' if cell.trivial else text
        return text + "".join(f"<br><small>{html.escape(f'{a} {b}')}</small>" for a, b in cell.below.items())

    style = sheet.cells.map(mark).style.set_uuid("cells").set_table_styles(STYLE).set_caption(html.escape(sheet.note))
    for axis in (0, 1):
        style = style.format_index(lambda title: html.escape(title).replace("\n", " <br>"), axis=axis)
    page = style.to_html(doctype_html=True, sparse_index=False)
    return page.replace("<html>", '<html lang="en">', 1).replace("<head>", f"<head>\n<title>{title}</title>", 1)
