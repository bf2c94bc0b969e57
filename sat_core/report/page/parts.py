"""The parts of the page that are read without JavaScript: numbers at the top, tables, figures, and files to save."""

from __future__ import annotations

import base64
import io
import mimetypes
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from PIL import Image

from sat_core.report import products
from sat_core.report.kinds import FIGURES
from sat_core.report.page.entries import Entry
from sat_core.runs import folder
from sat_core.runs.heartbeat import duration
from sat_core.study import Study
from sat_core.study.file import COMPARISONS, PARTS

TITLES = dict(zip(PARTS, ("Accuracy", "Accuracy after each attack", "Cost of training"), strict=True))
TITLES[COMPARISONS] = "Which defense beats which"
"""Suffix of a table's file -> heading."""
LONG = 50_000
"""Bytes of a csv that is not in the page."""
CHARTS = {"tradeoff": "plane", "curves": "curves", "landscape": "landscape"}
"""Kind of a figure -> the chart to zoom into that takes its place on a screen."""


class File(NamedTuple):
    """A file to save: its name and content, as an address."""

    name: str
    address: str

    @property
    def suffix(self) -> str:
        return self.name.rpartition(".")[2]


class Table(NamedTuple):
    """A part of a table as the page shows it."""

    title: str
    content: Markup
    note: Markup
    files: list[File]


class Figure(NamedTuple):
    """A figure as the page shows it; ``image`` is "" where there is none yet, ``chart`` where it cannot be zoomed."""

    kind: str
    about: Any
    image: str
    size: tuple[int, int]
    chart: str
    files: list[File]


def facts(entries: list[Entry]) -> dict[str, str]:
    """The numbers at the top of the page."""
    trained, judged = [e.record for e in entries if e.record], [e for e in entries if e.result]
    return {
        "runs complete": f"{sum(not e.problems for e in entries)} of {len(entries)}",
        "trivial: learnt nothing": f"{sum(e.result['trivial'] for e in judged)} of {len(judged)}",
        "training, all runs": duration(sum(record.get("seconds", 0) for record in trained)),
        "AutoAttack, all runs": duration(sum(folder.seconds_of(e.verdict) or 0 for e in judged)),
    }


def tables(study: Study, name: str) -> Iterator[Table]:
    """The parts of a table that there are, without the styles that they have as pages of their own."""
    for suffix, title in TITLES.items():
        path = study.folder / "tables" / f"{name}{suffix}.html"
        if path.exists() and (found := re.search("<table.*</table>", path.read_text(encoding="utf-8"), re.DOTALL)):
            table = re.sub(r' (id|class)="[^"]*"', "", found[0])
            note = re.search("<caption>(.*?)</caption>", table, re.DOTALL)
            content = table.replace(note[0], "") if note else table
            yield Table(title, Markup(content), Markup(note[1] if note else ""), files(path))


def figures(study: Study, name: str, entries: list[Entry]) -> Iterator[Figure]:
    """The figures of a table that there are, and those that there will be."""
    table = study.file.tables[name]
    begun, asked = {entry.run.id for entry in entries if len(entry.history)}, products.of(study)
    paths = {kind: path for kind in FIGURES if (path := study.folder / f"figures/{name}-{kind}.png").exists()}
    with ThreadPoolExecutor() as pool:  # packing them is half of a report's time, and does not hold Python's lock
        pictures = dict(zip(paths, pool.map(picture, paths.values()), strict=True))
    for kind, about in FIGURES.items():
        chart = CHARTS.get(kind, "")
        if kind in pictures:
            image, size = pictures[kind]
            yield Figure(kind, about, image, size, chart, files(paths[kind]))
        elif f"figures/{name}-{kind}" in asked:
            there = kind == "curves" and not begun.isdisjoint(table.run_ids)
            yield Figure(kind, about, "", (0, 0), chart if there else "", [])


def picture(path: Path) -> tuple[str, tuple[int, int]]:
    """A figure as the page shows it, without loss: address, width and height."""
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "webp", lossless=True)
        return address("image/webp", buffer.getvalue()), image.size


def files(shown: Path) -> list[File]:
    """What to save of a table or a figure: what has its name beside the file that the page shows, and works cited.

    Long lists of numbers stay where they are: the page would hold them twice.
    """
    beside = [*sorted(shown.parent.glob(f"{shown.stem}.*")), *sorted(shown.parent.glob("*.bib"))]
    beside = [path for path in beside if path.suffix not in (".html", ".md", ".png")]
    beside = [path for path in beside if path.suffix != ".csv" or path.stat().st_size <= LONG]
    kinds = [mimetypes.guess_type(path.name)[0] or "text/plain" for path in beside]
    return [File(path.name, address(kind, path.read_bytes())) for path, kind in zip(beside, kinds, strict=True)]


def address(kind: str, content: bytes) -> str:
    """Content of a kind (``image/png``) as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
