"""Where a run stands in a study: dataset, model, defense, epsilon, seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

import pydantic
from pydantic import BeforeValidator

from sat_core.errors import ConfigError

AXES = ("dataset", "model", "defense", "epsilon", "seed")


@dataclass(frozen=True)
class Epsilon:
    """An L_inf radius in pixel units, kept as typed: ``0.3`` or ``8/255``. 0 < value <= 1."""

    text: str

    @classmethod
    def parse(cls, raw: Any) -> Epsilon:
        """From YAML or a path; raises ValueError unless it is a number or fraction in (0, 1]."""
        if isinstance(raw, cls):
            return raw
        text = str(raw).strip() if isinstance(raw, (str, int, float)) and not isinstance(raw, bool) else ""
        text = format(Decimal(text), "f") if isinstance(raw, float) and math.isfinite(raw) else text  # 1e-05 is 0.00001
        try:
            ok = set(text) <= set("0123456789./") and 0 < Fraction(text) <= 1
        except (ValueError, ZeroDivisionError):
            ok = False
        if not ok:
            raise ValueError(f"epsilon '{raw}' is not a number or fraction in (0, 1], such as 0.3 or 8/255")
        return cls(text)

    @property
    def value(self) -> float:
        return float(Fraction(self.text))

    @property
    def slug(self) -> str:
        """The form used in paths: ``8/255`` is ``8-255``."""
        return self.text.replace("/", "-")

    def __str__(self) -> str:
        return self.text


EpsilonField = Annotated[
    Epsilon,
    BeforeValidator(Epsilon.parse),
    pydantic.PlainSerializer(str, return_type=str),
    pydantic.WithJsonSchema({"type": ["number", "string"]}),
]


@dataclass(frozen=True)
class RunId:
    """The address of a run; its :attr:`path` is both a folder and the word the command line takes."""

    dataset: str
    model: str
    defense: str
    epsilon: Epsilon
    seed: int

    @property
    def cell(self) -> str:
        """Where the runs stand that differ from it in their seeds alone: its path but for the seed."""
        return self.path.rpartition("/")[0]

    @property
    def path(self) -> str:
        return f"{self.dataset}/{self.model}/{self.defense}/eps{self.epsilon.slug}/seed{self.seed}"

    @classmethod
    def parse(cls, path: str) -> RunId:
        """From ``<dataset>/<model>/<defense>/eps<epsilon>/seed<seed>``; raises ConfigError."""
        try:
            dataset, model, defense, epsilon, seed = path.strip("/").split("/")
            if not (epsilon.startswith("eps") and seed.startswith("seed") and seed[4:].isdigit()):
                raise ValueError
            return cls(dataset, model, defense, Epsilon.parse(epsilon[3:].replace("-", "/")), int(seed[4:]))
        except ValueError:
            raise ConfigError(
                f"run '{path}' is not of the form dataset/model/defense/eps0.3/seed0 (8/255 is written eps8-255)"
            ) from None
