"""Whether a table, a figure or the report is of the present results, settings and code. Imports nothing heavy.

Beside each product stands a record, ``.<name>.json``, of what it was made of. Times of files say nothing: copying a
study changes them.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from sat_core.errors import ConfigError
from sat_core.report.kinds import FIGURES
from sat_core.runs import folder
from sat_core.runs.files import checksum, digest, read_json, write_json
from sat_core.runs.heartbeat import epochs_done
from sat_core.study import NAMES, Run, Study
from sat_core.study.file import COMPARISONS, PARTS
from sat_core.study.fingerprint import code

Memo = dict[tuple[str, str], list[object] | None]
"""(run, stage) -> checksum of the record and why it is not current; None where there is none."""
HERE = Path(__file__).parent
SUFFIXES = ("md", "csv", "tex", "html")


class Product:
    """A group of files made together. ``runs``: those in it, by stage.

    ``made_by``: the module and the function that makes them, and what that takes beside the study. ``memo``: what is
    known of the runs' results already; products that share it ask each run once.
    """

    def __init__(
        self,
        study: Study,
        name: str,
        files: list[str],
        made_by: tuple[str, ...],
        runs: dict[str, list[Run]],
        memo: Memo | None,
    ) -> None:
        self.study, self.name, self.runs = study, name, runs
        self.module, self.function, *self.about = made_by
        self.memo = {} if memo is None else memo
        self.files = [study.folder / file for file in files]
        self.begun: list[Run] = []
        """Runs that it shows before their training is complete."""
        self.shows: tuple[str, ...] = ()
        """Modules of which it shows what they have made."""
        self.record = study.folder / Path(name).with_name(f".{Path(name).name}.json")

    def made_of(self) -> str:
        """A hash of everything that its content depends on."""
        known: list[object] = [self.study.file.model_dump(mode="json"), code(self.module, *self.shows)]
        beside = [*HERE.glob("*.bib"), *HERE.glob("*.yaml"), *self.sources, NAMES]
        known += [checksum(path) for path in sorted(beside)]
        for stage, runs in self.runs.items():
            for run in runs:
                if (run.id.path, stage) not in self.memo:
                    path = run.folder / folder.STAGES[stage].record
                    self.memo[run.id.path, stage] = (
                        [checksum(path), folder.why_again(run, stage)] if path.exists() else None
                    )
                known.append(self.memo[run.id.path, stage])
        known += [(run.id.path, epochs) for run in self.begun if (epochs := epochs_done(run))]
        return digest(known)[:16]

    @property
    def sources(self) -> list[Path]:
        """What stands beside its code: template, style, scripts."""
        beside = (HERE / self.module.rpartition(".")[2]).glob("*.*")
        return [path for path in beside if path.suffix in (".jinja", ".css", ".js")]

    @property
    def is_possible(self) -> bool:
        """Whether there is anything to make it of."""
        stage = list(self.runs)[-1]
        done = any((run.folder / folder.STAGES[stage].record).exists() for run in self.runs[stage])
        return done or any(map(epochs_done, self.begun))

    def is_current(self) -> bool:
        """Whether all of its files are there, whole, and made of what there is now."""
        try:
            record = read_json(self.record)
        except ConfigError:
            return False
        whole = all(path.exists() and checksum(path) == record["files"].get(path.name) for path in self.files)
        return whole and record["made_of"] == self.made_of()

    def write(self, *more: object) -> None:
        """Make it, and put on record what of; ``more``: what else its function takes."""
        made_of = self.made_of()
        make = getattr(importlib.import_module(f"sat_core.{self.module}"), self.function)
        make(self.study, *self.about, *more)
        write_json(self.record, {"made_of": made_of, "files": {path.name: checksum(path) for path in self.files}})


def table(study: Study, name: str, memo: Memo | None = None) -> Product:
    """One table of the study, with its parts and the works cited."""
    runs = [study.run(id) for id in study.file.tables[name].run_ids]
    files = [f"tables/{name}{part}.{suffix}" for part in PARTS for suffix in SUFFIXES]
    made_by, of_stages = ("report.tables", "write_table", name), {"train": runs, "evaluate": runs}
    return Product(study, f"tables/{name}", [*files, "tables/references.bib"], made_by, of_stages, memo)


def comparisons(study: Study, name: str, memo: Memo | None = None) -> Product:
    """The differences between the defenses of a table."""
    runs = [study.run(id) for id in study.file.tables[name].run_ids]
    files = [f"tables/{name}{COMPARISONS}.{suffix}" for suffix in SUFFIXES]
    made_by, of_stages = ("report.comparisons", "write_comparisons", name), {"train": runs, "evaluate": runs}
    return Product(study, f"tables/{name}{COMPARISONS}", files, made_by, of_stages, memo)


def figure(study: Study, name: str, kind: str, memo: Memo | None = None) -> Product:
    """One figure of a table."""
    about = FIGURES[kind]
    runs = [study.run(id) for id in getattr(study.file.tables[name], folder.STAGES[about.stage].ids)]
    files = [f"figures/{name}-{kind}.{suffix}" for suffix in ("png", "pdf", "csv")]
    made_by, of_stages = ("report.figures", "write_figure", name, kind), {"train": runs, about.stage: runs}
    product = Product(study, f"figures/{name}-{kind}", files, made_by, of_stages, memo)
    product.begun = runs if kind == "curves" else []
    return product


def of(study: Study, memo: Memo | None = None) -> dict[str, Product]:
    """Everything that is made for a study without being asked for by name, by path without suffix, but the report."""
    memo = {} if memo is None else memo
    made = [table(study, name, memo) for name in study.file.tables]
    made += [comparisons(study, name, memo) for name, asked in study.file.tables.items() if len(asked.defenses) > 1]
    made += [
        figure(study, name, kind, memo)
        for name, asked in study.file.tables.items()
        for kind, about in FIGURES.items()
        if (ids := getattr(asked, folder.STAGES[about.stage].ids))
        and (not about.on_request or any(study.run(id).landscape.reattack for id in ids))
    ]
    return {product.name: product for product in made}


def report(study: Study, memo: Memo | None = None) -> Product:
    """The study on one page."""
    runs: dict[str, list[Run]] = {stage: [] for stage in folder.STAGES}
    for asked in study.file.tables.values():
        for stage, about in folder.STAGES.items():
            runs[stage] += [study.run(id) for id in getattr(asked, about.ids)]
    product = Product(study, "report", ["report.html"], ("report.page", "write_page"), runs, memo)
    product.shows = ("report.tables", "report.comparisons", "report.figures")
    return product
