"""What a study file says, checked and resolved to one frozen :class:`Run` per network to train.

A study is one YAML file: tables x models x defenses x epsilons x seeds. What it leaves unsaid comes from
``datasets/<dataset>.yaml`` beside it, or beside what it extends, or else from the project's own ``config/datasets``.
Torch is not imported here: Snakemake reads this package at every start.
"""

from __future__ import annotations

import difflib
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pydantic

from sat_core import plugins
from sat_core.errors import ConfigError, unknown
from sat_core.fields import Name, parse
from sat_core.study.address import AXES, RunId
from sat_core.study.external import BASE, External
from sat_core.study.file import DatasetFile, Override, ResourcesFile, StudyFile
from sat_core.study.reading import chain, extended, merge, read_yaml
from sat_core.study.run import Run

__all__ = ["Run", "RunId", "Study", "defense_names"]

PACKAGE = Path(__file__).resolve().parent.parent
DEFENSES, MODELS = PACKAGE / "defenses", PACKAGE / "models"
PROJECT_CONFIG = next((f for f in (PACKAGE / "config", PACKAGE.parent / "config") if f.is_dir()), PACKAGE / "config")
"""In an installed package, in a checkout."""
NAMES = Path(__file__).with_name("names.yaml")


class Study:
    """A study file read, checked and ready to give its runs. Raises ConfigError with one sentence.

    ``content``: what the file is to say that is not written yet.
    """

    def __init__(self, path: str | Path, content: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        if not pydantic.TypeAdapter(Name).validator.isinstance_python(self.name):
            raise ConfigError(f"{path}: a study's file name is its name: a-z, 0-9, '-' and '_' only, then .yaml")
        files = chain(read_yaml(self.path) if content is None else content, self.path)
        self.content, self._homes = extended(files), [path.parent for path, _ in files]
        self.file = parse(StudyFile, self.content, self.path)
        real = self.path.parent / self.file.rehearses if self.file.rehearses else self.path
        self.resources_file = real.parent / "resources" / f"{real.stem}.yaml"
        self._dataset_files: dict[str, DatasetFile] = {}
        self._runs: dict[str, Run] = {}
        self.defense_files: dict[str, str] = {}
        self.model_files: dict[str, str] = {}
        self._read_plugins()
        self.externals = {name: self._found(name, about) for name, about in self.file.external.items()}
        self._check_names()
        self._check_overrides()

    def _read_plugins(self) -> None:
        """Find the defenses and networks of the study's own files; each name stands for one thing."""
        for name in self.file.plugins:
            path = self.path.parent / name
            offered, place = plugins.read(path), plugins.beside(self.path, name)
            for kind, found, there, files in (
                ("defense", offered.defenses, defense_names(), self.defense_files),
                ("model", offered.networks, model_names(), self.model_files),
            ):
                for one in found:
                    if one in there or one in files:
                        raise ConfigError(
                            f"{path}: there is a {kind} '{one}' already, in {files.get(one, 'sat_core')}; give yours "
                            "another name, which begins with _ if it is something else: a public class with a base is "
                            "a defense, a public function of two arguments a model"
                        )
                    files[one] = place

    def _found(self, name: str, about: External) -> External:
        try:
            return about.seen_from(self.path)
        except ConfigError as error:
            raise ConfigError(f"{self.path}: external.{name}: {error}") from None

    @property
    def defense_names(self) -> frozenset[str]:
        """The defenses that this study may name."""
        return defense_names() | self.defense_files.keys()

    def _check_names(self) -> None:
        listed = dict.fromkeys(id.defense for id in self.run_ids.values())
        for kind, names in (("variants", self.file.variants), ("external", self.externals)):
            for name in names:
                if name in self.defense_names or (kind == "external" and name in self.file.variants):
                    raise ConfigError(f"{self.path}: {kind}.{name}: there is a defense of that name; take another one")
                if name not in listed:
                    raise ConfigError(f"{self.path}: {kind}.{name} stands in no table: add it to a table's defenses")
        for name in self.file.names:
            if name not in listed:
                raise ConfigError(f"{self.path}: names: {unknown('defense', name, listed)}")
        for base in map(self.base_defense, (name for name in listed if name not in self.externals)):
            if base not in self.defense_names:
                raise ConfigError(f"{self.path}: {unknown('defense', base, self.defense_names)}")
        there = model_names() | self.model_files.keys()
        for name in {id.model for id in self.run_ids.values() if id.defense not in self.externals}:
            if name not in there:
                raise ConfigError(f"{self.path}: {unknown('model', name, there)}")

    def _check_overrides(self) -> None:
        """An override that touches no run is a mistake: its author believes that it does something."""
        ids = self.run_ids.values()
        there = {axis: {str(getattr(id, axis)) for id in ids} for axis in AXES}
        there["defense"] |= set(map(self.base_defense, there["defense"]))
        places = [(self.path, self.file.overrides), (self.resources_file, self._resources)]
        for path, i, override in [(path, *found) for path, overrides in places for found in enumerate(overrides)]:
            place = f"{path}: overrides.{i}.where touches no run of this study"
            for axis, wanted in override.where:
                for value in wanted or ():
                    if str(value) not in there[axis]:
                        raise ConfigError(f"{place}: {unknown(axis, value, there[axis])}")
            touched = {id.defense for id in ids if override.where.matches(id, self.base_defense(id.defense))}
            if not touched:
                raise ConfigError(f"{place}: none has all of it at once")
            trained_by = sorted({"training", "options"} & override.set.model_fields_set)
            if trained_by and touched <= set(self.externals):
                raise ConfigError(
                    f"{path}: overrides.{i}.set.{trained_by[0]}: of {', '.join(sorted(touched))}, not trained here"
                )

    @cached_property
    def _resources(self) -> list[Override]:
        """What `plan --write` has found the jobs to need; it comes last."""
        path = self.resources_file
        return parse(ResourcesFile, read_yaml(path), path).overrides if path.exists() else []

    def base_defense(self, name: str) -> str:
        """The defense that a table means by ``name``: that of a variant, or the one of that name; or ``external``."""
        if name in self.externals:
            return BASE
        return self.file.variants[name].defense if name in self.file.variants else name

    def display(self, name: str) -> str:
        """What a defense is called in tables and figures; a variant, or a defense from elsewhere, by its own name.

        What was not trained here is marked.
        """
        usual = usual_names().get(name, {}).get("name", name)
        return self.file.names.get(name, usual) + (" (external)" if name in self.externals else "")

    @property
    def folder(self) -> Path:
        return Path("results", self.name)

    @property
    def rehearsal_file(self) -> Path:
        """Where the rehearsal of this study is, if it has one."""
        name = f"{self.name}-rehearsal"
        return Path("results", name, f"{name}.yaml")

    @cached_property
    def rehearsed(self) -> Study | None:
        """The study that this one is the rehearsal of."""
        return Study(self.path.parent / self.file.rehearses) if self.file.rehearses else None

    @cached_property
    def run_ids(self) -> dict[str, RunId]:
        """path -> id, each run once, in the order of the file."""
        return {run.path: run for table in self.file.tables.values() for run in table.run_ids}

    def dataset_file(self, name: str) -> DatasetFile:
        if name not in self._dataset_files:
            homes = (self.rehearsed or self)._homes  # beside each study that it extends, too; the nearest counts
            folders = [home / "datasets" for home in (*homes, PROJECT_CONFIG)]
            found = {file.stem: file for folder in reversed(folders) for file in sorted(folder.glob("*.yaml"))}
            if name not in found:
                raise ConfigError(f"{self.path}: {unknown('dataset', name, found)}")
            self._dataset_files[name] = parse(DatasetFile, read_yaml(found[name]), found[name])
        return self._dataset_files[name]

    def run(self, address: str | RunId) -> Run:
        """The resolved run at an address of this study; raises ConfigError if the study has no such run."""
        id = RunId.parse(address) if isinstance(address, str) else address
        if id.path not in self._runs:
            self._runs[id.path] = self._resolve(id)
        return self._runs[id.path]

    def _resolve(self, id: RunId) -> Run:
        if id.path not in self.run_ids:
            near = difflib.get_close_matches(id.path, self.run_ids, n=1, cutoff=0)
            raise ConfigError(f"{self.path} has no run '{id.path}'; the nearest it has is '{near[0]}'")
        defense = self.base_defense(id.defense)
        base = self.dataset_file(id.dataset)
        merged = base.model_dump(exclude={"overrides"})
        for override in [*base.overrides, *self.file.overrides, *self._resources]:
            if override.where.matches(id, defense):
                merged = merge(merged, override.set.model_dump(exclude_unset=True))
        if id.defense in self.file.variants:
            merged["options"] = merge(merged["options"], self.file.variants[id.defense].options)
            for override in self.file.overrides:  # what is said of the variant itself comes after its own
                if override.where.matches(id, defense) and id.defense in (override.where.defense or ()):
                    merged["options"] = merge(merged["options"], override.set.options)
        identity = {axis: getattr(id, axis) for axis in AXES}
        merged |= {"defense_file": self.defense_files.get(defense), "model_file": self.model_files.get(id.model)}
        if (external := self.externals.get(id.defense)) is not None:  # it has no epochs, and one set of weights
            merged |= {"external": external, "options": {}, "model_file": external.place or merged["model_file"]}
            merged = merge(merged, {"training": {"snapshots": 0}, "evaluation": {"weights": ["best"]}})
        run = parse(Run, {"study": self.name, "base": defense, **identity, **merged}, f"{self.path}, {id.path}")
        if run.evaluation.iterations is not None and not self.file.rehearses:
            raise ConfigError(
                f"{self.path}, {id.path}: evaluation.iterations is for rehearsals: a verdict is of all of AutoAttack"
            )
        return run

    @property
    def runs(self) -> list[Run]:
        return [self.run(id) for id in self.run_ids.values()]


@cache
def defense_names() -> frozenset[str]:
    """A defense is one file."""
    return frozenset(file.stem for file in DEFENSES.glob("[!_]*.py"))


@cache
def model_names() -> frozenset[str]:
    """A network, too."""
    return frozenset(file.stem.replace("_", "-") for file in MODELS.glob("[!_]*.py"))


@cache
def usual_names() -> dict[str, dict[str, str]]:
    """Defense -> what it is usually called (``name``), and the key of the ``work`` that it is from."""
    return read_yaml(NAMES)
