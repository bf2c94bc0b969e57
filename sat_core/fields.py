"""The types of what may be set, in a study or of a defense, and the one sentence that a wrong value gets."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, TypeVar, cast

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from sat_core.errors import ConfigError, unknown

T = TypeVar("T")


def _fraction(value: Any) -> Any:
    """Numbers may be written as fractions: '1/4' is 0.25."""
    if isinstance(value, str):
        try:
            return float(Fraction(value) if "/" in value else value)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f"'{value}' is not a number or a fraction such as 1/4") from None
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true/false")
    return value


def _within_reason(value: int) -> int:
    """What torch could not even count is a slip; not worth a bound in every description of a setting."""
    if value > 10**9:
        raise ValueError(f"{value} is more than a thousand million")
    return value


def _when(value: Any, info: pydantic.ValidationInfo) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"an epoch counts from 0, it cannot be {value}")
        return value / info.context["epochs"] if value and info.context else value
    share = _fraction(value)
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError("an epoch, a whole number from 0 on, or a share of the training in (0, 1] is expected")
    return float(share)


def at(when: int | float, epochs: int) -> int:
    """The epoch, from 0, that a :data:`When` means in a training of so many ``epochs``, at most ``epochs`` of a share.

    Example:
        >>> at(30, 100), at(0.6, 100), at(1.0, 8)
        (30, 60, 8)
    """
    return when if isinstance(when, int) else round(when * epochs)


Count = Annotated[int, Field(ge=1, strict=True), AfterValidator(_within_reason)]
Natural = Annotated[int, Field(ge=0, strict=True), AfterValidator(_within_reason)]
Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Number = Annotated[float, BeforeValidator(_fraction), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
When = Annotated[
    int | float, BeforeValidator(_when), pydantic.WithJsonSchema({"type": ["integer", "number", "string"]})
]
"""An epoch, counted from 0, or a share of the training: 0.6 or 3/5; see :func:`at`. Validated in a context, such as
``{"epochs": 100}``, all come out as shares of so many."""
Name = Annotated[str, Field(strict=True, pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class Frozen(BaseModel):
    """Base of every configuration object: immutable, and unknown keys are errors that name the nearest right key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(unknown("key", key, cls.model_fields))
        return data


@cache
def _adapter(type_: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(type_)


def parse(type_: type[T], raw: Any, where: object) -> T:
    """``raw`` as a ``type_``; a pydantic error becomes one ConfigError sentence about its first problem."""
    try:
        return _adapter(cast(Hashable, type_)).validate_python(raw)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{where}: {sentence(error)}") from None


MAPPING = "a mapping (key: value) is expected"
EXPECTED = {
    "dict_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "missing": "it is missing",
    "list_type": "a list is expected, such as [{example}]",
    "too_short": "at least {min_length} of them is needed",
    "int_type": "a whole number is expected",
    "int_parsing": "a whole number is expected",
    "float_type": "a number is expected",
    "float_parsing": "a number is expected",
    "string_type": "a word is expected",
    "string_pattern_mismatch": "only a-z, 0-9, '-' and '_' may stand in a name, and at most 64 of them",
}
"""Pydantic's kinds of error, said to someone who writes YAML."""


def sentence(error: pydantic.ValidationError) -> str:
    """The first problem of a validation error, as ``place: what is wrong``."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "[key]")
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    value = first.get("input")
    example = value if isinstance(value, (str, int, float)) else 0.3
    message = EXPECTED[kind].format(example=example, **first.get("ctx", {})) if kind in EXPECTED else message
    if not isinstance(value, (Mapping, list, type(None))) and str(value) not in message:
        message += f", not {value!r}"
    if kind == "string_pattern_mismatch" and re.fullmatch(first["ctx"]["pattern"], small := str(value).strip().lower()):
        message += f"; did you mean '{small}'?"
    return f"{place}: {message}" if place else message
