"""What a study file says, checked and resolved to one frozen :class:`Run` per network to train.

A study is one YAML file: tables x models x defenses x epsilons x seeds. What it leaves unsaid comes from
``datasets/<dataset>.yaml`` beside it, or else from the project's own ``config/datasets``. Torch is not imported here:
Snakemake reads this module at every start.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

DEFENSES = Path(__file__).resolve().parent / "defenses"
PROJECT_CONFIG = Path(__file__).resolve().parent.parent / "config"
T = TypeVar("T")
AXES = ("dataset", "model", "defense", "epsilon", "seed")


class ConfigError(ValueError):
    """Something a user wrote is wrong; the message is one sentence: what, where, and what is allowed."""


class Interrupted(Exception):
    """A signal asked the process to stop; everything needed to go on has been saved."""


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """The sentence for a name that is not among ``allowed``, with the nearest right one first."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"unknown {kind} '{name}'{hint} (allowed: {', '.join(allowed) or 'none'})"


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true/false")
    return value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _fraction(value: Any) -> Any:
    """Numbers may be written as fractions: '1/4' is 0.25."""
    if isinstance(value, str):
        try:
            return float(Fraction(value))
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"'{value}' is not a number or a fraction such as 1/4") from None
    return _not_bool(value)


Count = Annotated[int, Field(ge=1, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Number = Annotated[float, BeforeValidator(_fraction), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
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


class Data(Frozen):
    """Where a dataset comes from and what its images look like."""

    source: Literal["digits", "mnist", "fashion", "cifar10", "cifar100", "imagenette", "folder"]
    root: str = Field("data", description="folder of the files; downloaded to if they are not there")
    image: tuple[Literal[1, 3], Count, Count] = Field(description="channels, height, width")
    classes: Annotated[
        int, Field(ge=4, strict=True, description="AutoAttack needs four or more; of a folder: found if not given")
    ]
    train_images: Count | None = Field(
        None, description="train and validate on a stratified sample of so many training images, the same for every run"
    )
    mean: list[Number] = Field([0.0], description="per channel, subtracted inside the model")
    std: list[Positive] = Field([1.0], description="per channel, divided by inside the model")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _find_classes(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("source") == "folder" and "classes" not in data:
            train = Path(str(data.get("root", "data")), "train")
            found = sorted(path.name for path in train.iterdir() if path.is_dir()) if train.is_dir() else []
            if len(found) < 4:
                raise ValueError(f"{train} must hold a folder for each of four or more classes, it holds {found}")
            return {**data, "classes": len(found)}
        return data


class Training(Frozen):
    """SGD with momentum; the learning rate is divided by 10 at the start of each milestone epoch."""

    epochs: Count
    batch_size: Count = 128
    lr: Positive
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-4
    milestones: list[Count] = Field([], description="epochs (counted from 0) at which lr is divided by 10")
    augmentation: list[Literal["crop", "flip", "affine", "brightness", "resized_crop"]] = []
    precision: Literal["float32", "bfloat16", "tf32"] = Field(
        "float32", description="of the layers in training and its attacks; evaluation is always in float32"
    )
    compile: bool = Field(False, description="torch.compile the network in training; with CUDA graphs on GPUs")
    select: Literal["best", "last"] = Field("best", description="the epoch to evaluate; best: by validation")
    snapshots: Natural = Field(0, description="keep the weights of every so many epochs, for curvature; 0: never")

    @pydantic.model_validator(mode="after")
    def _milestones_within(self) -> Training:
        if self.milestones != sorted(set(self.milestones)) or any(m >= self.epochs for m in self.milestones):
            raise ValueError(f"milestones {self.milestones} must increase and lie below epochs ({self.epochs})")
        return self

    def learning_rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr / 10 ** sum(epoch >= milestone for milestone in self.milestones)

    @property
    def snapshot_epochs(self) -> range:
        """The epochs, counted from 1, after which the weights are kept."""
        return range(self.snapshots, self.epochs + 1, self.snapshots) if self.snapshots else range(0)

    @staticmethod
    def snapshot(epoch: int) -> str:
        """Where the weights after ``epoch`` epochs are, in the run's folder."""
        return f"snapshots/epoch{epoch:04}.safetensors"


class Attack(Frozen):
    """The PGD of the training loop, in L_inf."""

    steps: Count = 10
    relative_step_size: Positive = Field(0.25, description="step_size / epsilon; may be a fraction such as 1/15")
    batchnorm: Literal["eval", "train"] = Field("eval", description="the model's mode while it is attacked in training")


class Validation(Frozen):
    """Held-out part of the training images, attacked every epoch to choose the weights that are evaluated."""

    fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.1


class Evaluation(Frozen):
    """AutoAttack, `standard`, L_inf, on the test images."""

    images: Count | None = Field(None, description="the first so many test images; all of them if absent")
    batch_size: Count = 512
    seed: Natural = 0
    shards: Count = Field(1, description="how many jobs share the work; on a CPU the result does not depend on it")


class Curvature(Frozen):
    """The Hessian of the adversarial loss on a fixed sample of images, at the selected weights and at every snapshot.

    Training images by default: the paper's claim is about the loss that training has to descend.
    """

    split: Literal["train", "validation", "test"] = "train"
    images: Count = Field(500, description="size of the sample, which is the same for every run of a dataset")
    batch_size: Count = Field(100, description="images at a time; changes memory, not the result")
    steps: Annotated[int, Field(ge=2, strict=True)] = Field(40, description="of Lanczos, at most")
    tolerance: Positive = Field(1e-3, description="of ||Hv - lambda v|| / lambda_max, at which Lanczos stops")
    probes: Natural = Field(3, description="random vectors of the spectral density; 0: no density")
    seed: Natural = 0


class Landscape(Frozen):
    """Planes through the selected weights, and through the images; the sample is that of `curvature`."""

    points: Annotated[int, Field(ge=3, strict=True)] = Field(25, description="a side; odd, so that one is the centre")
    random: Positive = Field(1.0, description="half-width of the random plane, in norms of the filters")
    hessian: Positive = Field(1.0, description="half-width of the plane of the two top eigenvectors, in weight space")
    input: Positive = Field(1.0, description="half-width of the plane through the images, in epsilons")
    reattack: Natural = Field(0, description="points a side of the random plane attacked anew at each; 0: none")
    seed: Natural = 0

    @pydantic.field_validator("points", "reattack")
    @classmethod
    def _has_a_centre(cls, points: int) -> int:
        if points and points % 2 == 0:
            raise ValueError(f"{points} points a side have no centre; an odd number is needed")
        return points


class Resources(Frozen):
    """What a run's jobs ask of the machine; all but `threads` may change between attempts.

    `threads` is part of the result, because sums depend on it in the last bit. Memory and time bind on a cluster only.
    """

    threads: Count = 1
    mem_mb: Annotated[int, Field(ge=500, strict=True, description="main memory; a second attempt gets twice this")] = (
        4000
    )
    gpus: Annotated[int, Field(ge=0, le=1, strict=True)] = Field(
        1, description="1: a GPU if there is one; 0: the processor alone"
    )
    runs_per_gpu: Literal[1, 2, 4, 8] = Field(1, description="so many runs, trained and judged, share one allocation")
    train_minutes: Count = Field(60, description="time limit; a second attempt gets twice this")
    evaluate_minutes: Count = Field(60, description="of AutoAttack, of a shard of it, of curvature, of a landscape")
    checkpoint_epochs: Count = Field(1, description="a checkpoint after every so many epochs")
    checkpoint_minutes: Positive = Field(10.0, description="and within an epoch after so many minutes")


class Settings(Frozen):
    """Everything that may be set for a run; each part is optional here and completed from the dataset's file."""

    data: dict[str, Any] = {}
    training: dict[str, Any] = {}
    attack: dict[str, Any] = {}
    validation: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    curvature: dict[str, Any] = {}
    landscape: dict[str, Any] = {}
    resources: dict[str, Any] = {}
    options: dict[str, Any] = Field({}, description="of the defense: the fields of its class")


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
    where: Where = Where()
    set: Settings


class DatasetFile(Settings):
    """``config/datasets/<name>.yaml``: the data and the protocol usual for it."""

    overrides: list[Override] = []


class Variant(Frozen):
    """A defense under another name with other options, to stand as a row of its own."""

    defense: Name
    options: dict[str, Any] = {}


PARTS = ("", "-attacks", "-cost")
"""What the names of a table's files go on with: accuracy, accuracy after each attack, cost of training."""


class Table(Frozen):
    """One table of the paper: every model x defense x epsilon x seed on one dataset."""

    caption: str = ""
    dataset: Name
    models: list[Name] = Field(min_length=1)
    defenses: list[Name] = Field(min_length=1)
    epsilons: list[EpsilonField] = Field(min_length=1)
    seeds: list[Annotated[Natural, Field(lt=2**32)]] = Field([0], min_length=1)
    curvature: list[Name] = Field([], description="defenses whose Hessian is measured, for every seed")
    landscapes: list[Name] = Field([], description="defenses drawn side by side, for the first seed")

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

    def _product(self, defenses: list[str], seeds: list[int]) -> list[RunId]:
        return [
            RunId(self.dataset, model, defense, epsilon, seed)
            for model in self.models
            for defense in defenses
            for epsilon in self.epsilons
            for seed in seeds
        ]


class StudyFile(Frozen):
    """The whole of ``config/<study>.yaml``."""

    description: str = ""
    tables: dict[Name, Table] = Field(min_length=1)
    variants: dict[Name, Variant] = {}
    overrides: list[Override] = []

    @pydantic.field_validator("tables")
    @classmethod
    def _files_of_their_own(cls, tables: dict[str, Table]) -> dict[str, Table]:
        for name in tables:
            for part in PARTS[1:]:
                if f"{name}{part}" in tables:
                    raise ValueError(f"'{name}{part}' is a file of table '{name}'; give it another name")
        return tables


@dataclass(frozen=True)
class RunId:
    """The address of a run; its :attr:`path` is both a folder and the word the command line takes."""

    dataset: str
    model: str
    defense: str
    epsilon: Epsilon
    seed: int

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


class Run(Frozen):
    """One network to train and judge, with nothing left open. ``base`` is the defense that ``defense`` varies."""

    study: str
    dataset: str
    model: str
    defense: str
    base: str
    epsilon: EpsilonField
    seed: int
    data: Data
    training: Training
    attack: Attack
    validation: Validation
    evaluation: Evaluation
    curvature: Curvature
    landscape: Landscape
    resources: Resources
    options: dict[str, Any]

    @property
    def id(self) -> RunId:
        return RunId(self.dataset, self.model, self.defense, self.epsilon, self.seed)

    @property
    def folder(self) -> Path:
        """Where its files go, relative to the working directory."""
        return Path("results", self.study, "runs", self.id.path)

    @property
    def training_config(self) -> dict[str, Any]:
        """What the trained weights depend on, as plain JSON types. The place of the data is not part of it."""
        config = self.model_dump(mode="json", exclude={"study", "evaluation", "resources", "curvature", "landscape"})
        del config["data"]["root"]
        return config | {"threads": self.resources.threads}

    @property
    def evaluation_config(self) -> dict[str, Any]:
        """What AutoAttack's verdict on given weights depends on."""
        return self.evaluation.model_dump(mode="json", exclude={"shards"})

    def digest(self, *parts: Any) -> str:
        """A short fingerprint of :attr:`training_config` and ``parts`` (JSON types)."""
        text = json.dumps([self.training_config, *parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Study:
    """A study file read, checked and ready to give its runs. Raises ConfigError with one sentence."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        if not pydantic.TypeAdapter(Name).validator.isinstance_python(self.name):
            raise ConfigError(f"{path}: a study's file name is its name: a-z, 0-9, '-' and '_' only, then .yaml")
        self.file = parse(StudyFile, read_yaml(self.path), self.path)
        self._dataset_files: dict[str, DatasetFile] = {}
        self._runs: dict[str, Run] = {}
        self._check_defenses()
        self._check_overrides()

    def _check_defenses(self) -> None:
        listed = dict.fromkeys(id.defense for id in self.run_ids.values())
        for name in self.file.variants:
            if name in defense_names():
                raise ConfigError(f"{self.path}: variants.{name}: there is a defense of that name; take another one")
            if name not in listed:
                raise ConfigError(f"{self.path}: variants.{name} stands in no table: add it to a table's defenses")
        for base in map(self.base_defense, listed):
            if base not in defense_names():
                raise ConfigError(f"{self.path}: {unknown('defense', base, defense_names())}")

    def _check_overrides(self) -> None:
        """An override that touches no run is a mistake: its author believes that it does something."""
        ids = self.run_ids.values()
        there = {axis: {str(getattr(id, axis)) for id in ids} for axis in AXES}
        there["defense"] |= set(map(self.base_defense, there["defense"]))
        for i, override in enumerate(self.file.overrides):
            place = f"{self.path}: overrides.{i}.where touches no run of this study"
            for axis, wanted in override.where:
                for value in wanted or ():
                    if str(value) not in there[axis]:
                        raise ConfigError(f"{place}: {unknown(axis, value, there[axis])}")
            if not any(override.where.matches(id, self.base_defense(id.defense)) for id in ids):
                raise ConfigError(f"{place}: none has all of it at once")

    def base_defense(self, name: str) -> str:
        """The defense that a table means by ``name``: that of a variant, or the one of that name."""
        return self.file.variants[name].defense if name in self.file.variants else name

    @property
    def folder(self) -> Path:
        return Path("results", self.name)

    @cached_property
    def run_ids(self) -> dict[str, RunId]:
        """path -> id, each run once, in the order of the file."""
        return {run.path: run for table in self.file.tables.values() for run in table.run_ids}

    def dataset_file(self, name: str) -> DatasetFile:
        if name not in self._dataset_files:
            folders = [self.path.parent / "datasets", PROJECT_CONFIG / "datasets"]
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
        for override in [*base.overrides, *self.file.overrides]:
            if override.where.matches(id, defense):
                merged = merge(merged, override.set.model_dump(exclude_unset=True))
        if id.defense in self.file.variants:
            merged["options"] = merge(merged["options"], self.file.variants[id.defense].options)
        identity = {axis: getattr(id, axis) for axis in AXES}
        return parse(Run, {"study": self.name, "base": defense, **identity, **merged}, f"{self.path}, {id.path}")

    @property
    def runs(self) -> list[Run]:
        return [self.run(id) for id in self.run_ids.values()]


@cache
def defense_names() -> frozenset[str]:
    """A defense is one file."""
    return frozenset(file.stem for file in DEFENSES.glob("[!_]*.py"))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` on top; nested mappings are merged, everything else is replaced."""
    nested = {
        k: merge(base[k], v) for k, v in over.items() if isinstance(v, Mapping) and isinstance(base.get(k), Mapping)
    }
    return {**base, **over, **nested}


class UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error, not the last one's silent victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"a key must be a word or a number {key.start_mark}")
            if key.value in seen:
                raise yaml.YAMLError(f"'{key.value}' is given twice, the second time {key.start_mark}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The document in ``path``; raises ConfigError if it is missing or not YAML."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


@cache
def _adapter(type_: type[T]) -> pydantic.TypeAdapter[T]:
    return pydantic.TypeAdapter(type_)


def parse(type_: type[T], raw: Any, where: object) -> T:
    """``raw`` as a ``type_``; a pydantic error becomes one ConfigError sentence about its first problem."""
    try:
        return _adapter(type_).validate_python(raw)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{where}: {sentence(error)}") from None


MAPPING = "a mapping (key: value) is expected"
EXPECTED = {
    "dict_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "missing": "it is missing",
    "list_type": "a list is expected, such as [0.3] for one value",
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
    message = EXPECTED.get(kind, message).format(**first.get("ctx", {}))
    if not isinstance(value := first.get("input"), (Mapping, list, type(None))) and str(value) not in message:
        message += f", not {value!r}"
    return f"{place}: {message}" if place else message
