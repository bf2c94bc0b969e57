"""What a study file and a dataset file say, as written: tables, variants, overrides."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, Field

from sat_core.errors import unknown
from sat_core.fields import Frozen, Name, Natural, Number, Seed
from sat_core.study.address import AXES, EpsilonField, RunId
from sat_core.study.external import External
from sat_core.study.settings import Settings

PARTS = ("", "-attacks", "-cost")
"""What the names of a table's files go on with: accuracy, accuracy after each attack, cost of training."""
COMPARISONS = "-comparisons"
"""And those of the differences between its defenses, where it has several."""


def _as_list(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


ONE_OR_MORE = (
    BeforeValidator(_as_list),
    pydantic.WithJsonSchema({"type": ["string", "number", "array"], "items": {"type": ["string", "number"]}}),
)


class Where(Frozen):
    """Which runs an override touches: those that agree with every axis given (one value or a list)."""

    dataset: Annotated[list[Name], *ONE_OR_MORE] | None = None
    model: Annotated[list[Name], *ONE_OR_MORE] | None = None
    defense: Annotated[list[Name], *ONE_OR_MORE] | None = None
    epsilon: Annotated[list[EpsilonField], *ONE_OR_MORE] | None = None
    seed: Annotated[list[Natural], *ONE_OR_MORE] | None = None

    def matches(self, run: RunId, base_defense: str) -> bool:
        """``base_defense`` lets a variant inherit what is said of the defense it varies."""
        names = {axis: {getattr(run, axis)} for axis in AXES} | {"defense": {run.defense, base_defense}}
        return all(wanted is None or names[axis] & set(wanted) for axis, wanted in self)


class Override(Frozen):
    """What is ``set`` for the runs that it is said of; those that come later win."""

    where: Where = Where()
    set: Settings


class DatasetFile(Settings):
    """``config/datasets/<name>.yaml``: the data and the protocol usual for it."""

    overrides: list[Override] = []


class ResourcesFile(Frozen):
    """``config/resources/<study>.yaml``: what `plan --write` found the jobs of a study to need."""

    overrides: list[Override] = []

    @pydantic.field_validator("overrides")
    @classmethod
    def _of_resources_alone(cls, overrides: list[Override]) -> list[Override]:
        for override in overrides:
            for section in override.set.model_fields_set - {"resources"}:
                raise ValueError(f"only resources may be set here, not {section}: that belongs into the study")
        return overrides


class Variant(Frozen):
    """A defense under another name with other options, to stand as a row of its own."""

    defense: Name
    options: dict[str, Any] = {}


class Table(Frozen):
    """One table of the paper: every model x defense x epsilon x seed on one dataset."""

    caption: str = ""
    dataset: Name
    models: list[Name] = Field([], description="of what is trained; externals bring their own")
    defenses: list[Name] = Field(min_length=1)
    epsilons: list[EpsilonField] = Field(min_length=1)
    seeds: list[Seed] = Field([0], min_length=1)
    curvature: list[Name] = Field([], description="defenses whose Hessian is measured, for every seed")
    landscapes: list[Name] = Field([], description="defenses drawn side by side, for the first seed")
    _external: dict[str, str] = {}
    style: Literal["full", "paper"] = Field(
        "full", description="paper: means alone, in the layout of the paper's tables"
    )

    @pydantic.field_validator("models", "defenses", "epsilons", "seeds", "curvature", "landscapes")
    @classmethod
    def _distinct(cls, values: list) -> list:
        if len(set(values)) < len(values):
            raise ValueError(f"listed twice: {', '.join(sorted({str(v) for v in values if values.count(v) > 1}))}")
        return values

    @pydantic.model_validator(mode="after")
    def _measured_are_trained(self) -> Table:
        for key in ("curvature", "landscapes"):
            for name in getattr(self, key):
                if name not in self.defenses:
                    raise ValueError(f"{key}: {unknown('defense', name, self.defenses)}")
        return self

    @property
    def run_ids(self) -> list[RunId]:
        return self._product(self.defenses, self.seeds)

    @property
    def curvature_ids(self) -> list[RunId]:
        return self._product(self.curvature, self.seeds)

    @property
    def landscape_ids(self) -> list[RunId]:
        return self._product(self.landscapes, self.seeds[:1])

    @property
    def networks(self) -> list[str]:
        """The models of its rows: those that are trained, and those of externals."""
        return list(dict.fromkeys([*self.models, *self._external.values()]))

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Model and defense of each row."""
        return list(dict.fromkeys((id.model, id.defense) for id in self.run_ids))

    @property
    def has_externals(self) -> bool:
        """Whether some of its rows were not trained here."""
        return bool(self._external)

    def first(self, ids: list[RunId]) -> list[RunId]:
        """Those of the first seed. Externals have but one, 0."""
        return [id for id in ids if id.seed == self.seeds[0] or id.defense in self._external]

    def _product(self, defenses: list[str], seeds: list[int]) -> list[RunId]:
        return [
            RunId(self.dataset, model, defense, epsilon, seed)
            for model in self.networks
            for defense in defenses
            if (self._external[defense] == model if defense in self._external else model in self.models)
            for epsilon in self.epsilons
            for seed in ([0] if defense in self._external else seeds)
        ]


class StudyFile(Frozen):
    """The whole of ``config/<study>.yaml``."""

    description: str = ""
    extends: str | None = Field(None, description="a study, as seen from this file, whose tables and rows these add to")
    rehearses: str | None = Field(None, description="the study, as seen from this file, that this is the rehearsal of")
    tables: dict[Name, Table] = Field(min_length=1)
    variants: dict[Name, Variant] = {}
    external: dict[Name, External] = Field({}, description="networks not trained here, listed like defenses")
    overrides: list[Override] = []
    plugins: list[str] = Field([], description="files of your own defenses and networks, as seen from this file")
    names: dict[Name, str] = Field({}, description="how defenses are called in tables and figures, if not as usual")
    figure_width: Annotated[Number, Field(ge=2, le=20)] = Field(
        5.9, description="inches: 3.25 a column, 6.75 both columns of a usual page, 5.9 the text of one with one column"
    )

    @pydantic.field_validator("tables")
    @classmethod
    def _files_of_their_own(cls, tables: dict[str, Table]) -> dict[str, Table]:
        for name in tables:
            for part in (*PARTS[1:], COMPARISONS):
                if f"{name}{part}" in tables:
                    raise ValueError(f"'{name}{part}' is a file of table '{name}'; give it another name")
        return tables

    @pydantic.field_validator("tables")
    @classmethod
    def _epsilons_are_written_one_way(cls, tables: dict[str, Table]) -> dict[str, Table]:
        """As typed, they are folders: one radius written two ways would be trained twice."""
        written: dict[float, str] = {}
        for epsilon in (epsilon for table in tables.values() for epsilon in table.epsilons):
            if (before := written.setdefault(epsilon.value, str(epsilon))) != str(epsilon):
                raise ValueError(f"epsilons {before} and {epsilon} are the same radius: write it one way")
        return tables

    @pydantic.model_validator(mode="after")
    def _externals_in_tables(self) -> StudyFile:
        """Tell the tables which of their defenses are externals, and that the others need a model."""
        for name, table in self.tables.items():
            table._external = {row: self.external[row].network for row in table.defenses if row in self.external}
            if not table.models and len(table._external) < len(table.defenses):
                raise ValueError(f"tables.{name}.models: it is missing")
        return self
