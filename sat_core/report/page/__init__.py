"""The study on one page: ``report.html``, which needs nothing but itself. Made from what exists. Needs no torch.

Tables and figures are read without JavaScript. With it they are sorted, filtered, zoomed into, and each run has a part
of its own, which is drawn from the data in the page when it is opened. Plotly draws: of the libraries that a locked
Python package ships whole it is the one that has surfaces, too.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sat_core.errors import ConfigError
from sat_core.report import products
from sat_core.report.card import write_card
from sat_core.report.page import data, parts
from sat_core.report.page.entries import Entry, describe
from sat_core.runs.files import atomic
from sat_core.study import Study

HERE = Path(__file__).parent
SCRIPTS = ("page", "tables", "filter", "charts", "landscape", "verdict", "run")
"""In the order in which they build on one another."""


def write_report(study: Study) -> list[str]:
    """Write ``report.html``, after any table or figure that is missing or out of date; returns what is damaged.

    Whatever a table, a figure or a run lacks is said in its place. The same results give the same bytes.
    """
    problems = refresh(study)
    for run in study.runs:
        with contextlib.suppress(ConfigError):  # what is damaged, the page says
            write_card(run)
    entries = [describe(study, run) for run in study.runs]
    products.report(study).write(entries, problems)
    return problems + [
        f"{e.run.id.path}: {problem}" for e in entries for problem in e.problems if problem.state == "damaged"
    ]


def refresh(study: Study) -> list[str]:
    """Make the tables and figures that are not of the present results; returns what went wrong."""
    problems = []
    for name, product in products.of(study).items():
        if product.is_current() or not (product.is_possible or any(path.exists() for path in product.files)):
            continue
        try:
            product.write()
        except ConfigError as error:
            problems.append(f"{name} could not be made: {error}.")
    return problems


def write_page(study: Study, entries: list[Entry], problems: list[str]) -> None:
    """Write ``report.html`` from what is known of the runs."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "ensure_ascii": False}
    each, overview = data.of(study, entries)
    page = environment.get_template("page.html.jinja").render(
        study=study,
        entries=entries,
        facts=parts.facts(entries),
        problems=problems,
        tables={name: list(parts.tables(study, name)) for name in study.file.tables},
        figures={name: list(parts.figures(study, name, entries)) for name in study.file.tables},
        overview=overview,
        each=each,
        style=text("page.css"),
        scripts=[text(f"{name}.js") for name in SCRIPTS],
        plotly=packed_plotly(),
    )
    with atomic(study.folder / "report.html") as file:
        file.write(page)


def text(name: str) -> Markup:
    """A file beside this one, as it stands."""
    return Markup((HERE / name).read_text(encoding="utf-8"))


@cache
def packed_plotly() -> str:
    """The plotting library, gzip in base64: 2 MB instead of 5. The page unpacks it when the first chart is seen."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
