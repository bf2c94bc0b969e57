"""The study on one page: ``report.html``, which needs nothing but itself. Made from what exists. Needs no torch."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sat_core import figures, tables
from sat_core.config import PARTS, ConfigError, Run, Study, Table
from sat_core.files import atomic, read_json
from sat_core.kinds import FIGURES
from sat_core.provenance import training_digest

TEMPLATE = Path(__file__).with_name("report.html.jinja")
TABLES = dict(zip(PARTS, ("Accuracy", "Accuracy after each attack", "Cost of training"), strict=True))
"""Suffix of a table's file -> heading."""
STAGES = {
    "train": ("run_ids", "run.json"),
    "evaluate": ("run_ids", "autoattack.json"),
    "curvature": ("curvature_ids", "curvature.json"),
    "landscape": ("landscape_ids", "landscape.npz"),
}
"""What is done to a run -> the field of a table that asks for it, and the file whose presence means done."""


@dataclass
class Entry:
    """What the page says of a run. ``problems``: what failed, is missing or is out of date, in sentences."""

    run: Run
    record: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.problems:
            return "✗ " + ", ".join(problem.partition(":")[0] for problem in self.problems)
        return "† trivial" if self.result["trivial"] else "✓ complete"


def write_report(study: Study) -> Path:
    """Write ``report.html``, after any table or figure that is missing or out of date.

    Whatever a table, a figure or a run lacks is said in its place. The same results give the same bytes.
    """
    problems = refresh(study)
    entries = [describe(study, run) for run in study.runs]
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
    return study.folder / "report.html"


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
    """Make the tables, and the figures that are not known to be of the present results; returns what went wrong.

    A figure is if all of its runs are there and older than it. Snakemake has made those before.
    """
    problems = []
    for name, table in study.file.tables.items():
        sources = [path for file in ("run.json", "autoattack.json") for path in needed(study, table, "run_ids", file)]
        work = [(f"tables/{name}.html", sources, tables.write_table, (study, name))]
        for kind, about in FIGURES.items():
            product, sources = f"figures/{name}-{kind}.png", needed(study, table, about.ids, about.file)
            if not about.on_request and not is_current(study.folder / product, [study.path, *sources]):
                work.append((product, sources, figures.write_figure, (study, name, kind)))
        for product, sources, make, arguments in work:
            try:
                if any(path.exists() for path in (study.folder / product, *sources)):
                    make(*arguments)
            except ConfigError as error:
                problems.append(f"{product} could not be made: {error}.")
    return problems


def is_current(product: Path, sources: list[Path]) -> bool:
    """Whether a file and all of its sources are there, and none of them is younger."""
    return all(path.exists() for path in (product, *sources)) and changed(product) >= max(map(changed, sources))


def needed(study: Study, table: Table, ids: str, file: str) -> list[Path]:
    """That file of each run that a field of the table lists."""
    return [study.run(id).folder / file for id in getattr(table, ids)]


def changed(path: Path) -> int:
    """When a file was last written."""
    return path.stat().st_mtime_ns


def describe(study: Study, run: Run) -> Entry:
    """Everything that the page says of one run."""
    entry = Entry(run)
    for stage, (ids, file) in STAGES.items():
        if not any(run.id in getattr(table, ids) for table in study.file.tables.values()):
            continue
        if not (run.folder / file).exists():
            entry.problems.append(f"{stage}: {last_words(study, stage, run)}")
            if stage == "train":
                break
        try:
            if stage == "train":
                entry.record = read_json(run.folder / file)
                if entry.record["digest"] != training_digest(run):
                    entry.problems.append("train: the weights are of other settings or other code than the present.")
            elif stage == "evaluate" and (run.folder / file).exists():
                entry.verdict = read_json(run.folder / file)
                entry.result = tables.evaluated(run) or {}
                if not entry.result:
                    entry.problems.append("evaluate: the verdict is on other weights than the present.")
        except ConfigError as error:
            entry.problems.append(f"{stage}: {error}.")
    return entry


def last_words(study: Study, stage: str, run: Run) -> str:
    """Why a stage has no result: the last line of the log of whoever tried."""
    folder = study.folder / "logs" / stage
    logs = sorted([*folder.glob(f"{run.id.path}.log"), *folder.glob(f"{run.id.path}-*.log")], key=changed)
    lines = logs[-1].read_text(encoding="utf-8", errors="replace").split("\n") if logs else []
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
