"""The study on one page: ``report.html``, which needs nothing but itself. Made from what exists. Needs no torch."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sat_core.errors import ConfigError
from sat_core.report import comparisons, figures, numbers, products, tables
from sat_core.report.card import write_card
from sat_core.report.kinds import FIGURES
from sat_core.runs import folder
from sat_core.runs.files import atomic
from sat_core.study import Run, Study
from sat_core.study.file import COMPARISONS, PARTS, Table

TEMPLATE = Path(__file__).with_name("page.html.jinja")
TABLES = dict(zip(PARTS, ("Accuracy", "Accuracy after each attack", "Cost of training"), strict=True))
TABLES[COMPARISONS] = "Which defense beats which"
"""Suffix of a table's file -> heading."""


@dataclass
class Entry:
    """What the page says of a run. ``problems``: what failed, is missing or is out of date, in sentences."""

    run: Run
    record: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    damaged: bool = False

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.problems:
            return "✗ " + ", ".join(problem.partition(":")[0] for problem in self.problems)
        state = "† trivial" if self.result["trivial"] else "✓ complete"
        more = {"external": self.run.external, "AutoAttack warns": self.result["flags"]}
        more |= {"accepted under other code": self.accepted}
        return ", ".join([state, *(word for word, holds in more.items() if holds)])


def write_report(study: Study) -> list[str]:
    """Write ``report.html``, after any table or figure that is missing or out of date; returns what is damaged.

    Whatever a table, a figure or a run lacks is said in its place. The same results give the same bytes.
    """
    problems = refresh(study)
    for run in study.runs:
        with contextlib.suppress(ConfigError):  # what is damaged, the page says
            write_card(run)
    entries = [describe(study, run) for run in study.runs]
    products.report(study).write(lambda: write_page(study, entries, problems))
    return problems + [f"{e.run.id.path}: {problem}" for e in entries if e.damaged for problem in e.problems]


def write_page(study: Study, entries: list[Entry], problems: list[str]) -> None:
    """Write ``report.html`` from what is known of the runs."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["yaml"] = lambda content: yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    page = environment.get_template(TEMPLATE.name).render(
        study=study,
        entries=entries,
        facts=facts(entries),
        problems=problems,
        tables={name: list(table_parts(study, name)) for name in study.file.tables},
        figures={name: list(figure_parts(study, name, table)) for name, table in study.file.tables.items()},
    )
    with atomic(study.folder / "report.html") as file:
        file.write(page)


def facts(entries: list[Entry]) -> dict[str, str]:
    """The numbers at the top of the page."""
    trained, judged = [e.record for e in entries if e.record], [e for e in entries if e.result]
    return {
        "runs complete": f"{sum(not e.problems for e in entries)} of {len(entries)}",
        "trivial: learnt nothing": f"{sum(e.result['trivial'] for e in judged)} of {len(judged)}",
        "training, all runs": duration(sum(record["seconds"] for record in trained)),
        "AutoAttack, all runs": duration(sum(sum(e.verdict["seconds"].values()) for e in judged)),
    }


def duration(seconds: float) -> str:
    """In the unit that fits."""
    unit, name = next(((u, n) for u, n in ((3600, "h"), (60, "min")) if seconds >= 2 * u), (1, "s"))
    return f"{seconds / unit:.1f} {name}"


def refresh(study: Study) -> list[str]:
    """Make the tables and figures that are not of the present results; returns what went wrong."""
    problems = []
    for name, product in products.of(study).items():
        if product.is_current() or not (product.is_possible or any(path.exists() for path in product.files)):
            continue
        try:
            product.write(partial(make, study, name))
        except ConfigError as error:
            problems.append(f"{name} could not be made: {error}.")
    return problems


def make(study: Study, name: str) -> None:
    """Write a table or a figure by its path without suffix."""
    place, _, name = name.partition("/")
    if place == "tables" and name in study.file.tables:
        tables.write_table(study, name)
    elif place == "tables":
        comparisons.write_comparisons(study, name.removesuffix(COMPARISONS))
    else:
        table, kind = next((t, name[len(t) + 1 :]) for t in study.file.tables if name[len(t) + 1 :] in FIGURES)
        figures.write_figure(study, table, kind)


def describe(study: Study, run: Run) -> Entry:
    """Everything that the page says of one run."""
    entry = Entry(run)
    for stage, about in folder.STAGES.items():
        if not any(run.id in getattr(table, about.ids) for table in study.file.tables.values()):
            continue
        try:
            record = folder.record_of(run, stage)
            if record is None:
                entry.problems.append(f"{stage}: {last_words(study, stage, run)}")
                if stage == "train":
                    break
                continue
            if reasons := folder.why_other(run, stage):
                entry.problems.append(f"{stage}: of other settings or code than the present: {'; '.join(reasons)}.")
            entry.accepted += [
                f"{stage}: accepted although {', '.join(note['changes'])}, by {note['by']}, {note['at']}, at commit "
                f"{note['commit']}."
                for note in record.get("accepted", [])
            ]
            if stage == "train":
                entry.record = record
            elif stage == "evaluate":
                entry.verdict, entry.result = record, numbers.evaluated(run) or {}
            else:
                folder.measured(run, stage)
        except ConfigError as error:
            entry.problems.append(f"{stage}: {error}.")
            entry.damaged = True
    return entry


def last_words(study: Study, stage: str, run: Run) -> str:
    """Why a stage has no result: the last line of the log of whoever tried."""
    logs = study.folder / "logs" / stage
    found = [*logs.glob(f"{run.id.path}.log"), *logs.glob(f"{run.id.path}-*.log")]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    lines = newest.read_text(encoding="utf-8", errors="replace").split("\n") if newest else []
    said = [line.strip() for line in lines if line.strip()]
    return f"no result; its log ends with “{said[-1]}”" if said else "not done yet."


def table_parts(study: Study, name: str) -> Iterator[tuple[str, Markup, Markup]]:
    """Heading, table and note of each file of a table, without the styles that these have as pages of their own."""
    for suffix, title in TABLES.items():
        path = study.folder / "tables" / f"{name}{suffix}.html"
        if path.exists() and (found := re.search("<table.*</table>", path.read_text(encoding="utf-8"), re.DOTALL)):
            table = re.sub(r' (id|class)="[^"]*"', "", found[0])
            note = re.search("<caption>(.*?)</caption>", table, re.DOTALL)
            yield title, Markup(table.replace(note[0], "") if note else table), Markup(note[1] if note else "")


def figure_parts(study: Study, name: str, table: Table) -> Iterator[tuple[str, Any, str, tuple[int, int]]]:
    """Kind, what is known of it, and the image in base64 with its size; "" and (0, 0) where there is none."""
    for kind, about in FIGURES.items():
        path = study.folder / "figures" / f"{name}-{kind}.png"
        if path.exists():
            content = path.read_bytes()
            size = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
            yield kind, about, base64.b64encode(content).decode(), size
        elif getattr(table, about.ids) and not about.on_request:
            yield kind, about, "", (0, 0)
