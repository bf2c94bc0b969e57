"""What a result is made of: settings, source code, versions; and what of it differs from the present, in words.

Torch is not imported here: Snakemake asks at every start.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sat_core import __version__, plugins
from sat_core.errors import ConfigError
from sat_core.study import PACKAGE
from sat_core.study.external import ROBUSTBENCH
from sat_core.study.reading import seen_from
from sat_core.study.run import Run

PACKAGES = ("torch", "torchvision", "pyautoattack", "numpy", "scikit-learn", "snakemake")
STAGES: dict[str, tuple[str, ...]] = {
    "data": ("data", "validation"),
    "train": ("model", "base", "epsilon", "seed", "data", "training", "attack", "validation", "options"),
    "evaluate": ("evaluation", "attack"),
    "curvature": ("curvature", "attack"),
    "landscape": ("curvature", "landscape", "attack"),
}
"""What is done for a run -> the settings that its result depends on, beside what it is made from."""
CHANGES_NOTHING = {
    "data": ("validation.steps", "validation.relative_step_size"),
    "train": ("data.root", "training.tensorboard"),
    "evaluate": ("evaluation.shards",),
}
"""Settings in those sections that change no number. Of ``resources``, ``threads`` does."""
SAYING = ("print", *(f"log.{level}" for level in ("debug", "info", "warning", "error", "exception", "critical")))
"""Statements of these compute nothing, either."""
COMPUTES_NOTHING = {
    *("errors", "fields", "runs.files", "runs.folder", "runs.checkpoint", "runs.data"),
    *("runs.heartbeat", "runs.judging"),
}
"""Modules whose code no number depends on, but for ``fields.at``, which a test keeps as it is. Data count by their
content, and settings (``study``) by their values."""


def made_of(run: Run, stage: str) -> dict[str, dict[str, Any]]:
    """What the result of a stage is made of now, as JSON: ``settings`` by dotted name, ``code`` by module."""
    if stage == "train" and run.external is not None:
        data = run.data.model_dump(mode="json", include={"image", "classes"})
        settings = dict(flat({"external": run.external.settings(), "data": data}))
        return {"settings": settings, "code": code(*own_code(run))}
    settings = dict(flat(run.model_dump(mode="json", include=set(STAGES[stage]))))
    for name in CHANGES_NOTHING.get(stage, ()):
        settings.pop(name, None)
    if stage == "train":
        settings["resources.threads"] = run.resources.threads
    defense, network = own_code(run)
    own = {"data": [], "train": [defense, network]}.get(stage, [network])
    return {"settings": settings, "code": code("runs.trainer" if stage == "train" else f"runs.{stage}", *own)}


def own_code(run: Run) -> tuple[str, str]:
    """Where a run's own defense and network are: a module of this package, or a file of someone's own."""
    network = run.model_file or f"models.{run.model.replace('-', '_')}"
    if network == ROBUSTBENCH:
        network = "models._robustbench"
    return "runs.external" if run.external else run.defense_file or f"defenses.{run.base}", network


def changes(recorded: dict[str, dict[str, Any]], run: Run, stage: str) -> list[str]:
    """What has changed since a result was made of ``recorded``, a phrase each; none where it is current.

    A setting that did not exist then counts only where it differs from its default now.
    """
    now = made_of(run, stage)
    old, new = recorded.get("settings", {}), now["settings"]
    said = [f"{name} {old[name]} -> {new[name]}" for name in new if name in old and old[name] != new[name]]
    said += [f"{name} -> {new[name]}" for name in new if name not in old and new[name] != default(run, name)]
    said += [f"{name} {old[name]} -> unset" for name in old if name not in new and old[name] is not None]
    return said + changed_code(recorded.get("code", {}), now["code"])


def changed_code(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """The source files that differ, a phrase each."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    files = [name if name.endswith(".py") else str(_file(name).relative_to(PACKAGE.parent)) for name in names]
    return [f"{file} changed" for file in files]


def default(run: Run, name: str) -> Any:
    """The default of a setting by its dotted name, as JSON; None for what has none."""
    section, _, key = name.partition(".")
    fields = getattr(type(getattr(run, section)), "model_fields", {})
    if key not in fields or fields[key].is_required():
        return None
    return type(getattr(run, section)).model_construct().model_dump(mode="json", include={key})[key]


def flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in nested mappings."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@cache
def code(*modules: str) -> dict[str, str]:
    """Module -> a short hash of its code, for these modules of this package and all that they import of it.

    Comments, docstrings and layout do not count, nor do log lines and the sentences of errors, so that tidying up does
    not throw away a hundred GPU hours.
    """
    found: set[str] = set()
    todo = list(modules)
    homes = tuple(home for module in modules if module.endswith(".py") for home in plugins.homes(Path(module)))
    while todo:
        module = todo.pop()
        computes = not (module in COMPUTES_NOTHING or module.split(".")[0] == "study")
        if module not in found and (module in modules or computes):
            found.add(module)
            todo += _imports(_file(module), homes)
    return {module: _hash(_file(module)) for module in sorted(found)}


def _file(module: str) -> Path:
    if module.endswith(".py"):
        return Path(module)
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as Python: {error}") from None


@cache
def _imports(path: Path, homes: tuple[Path, ...]) -> list[str]:
    """The modules of this package that a file imports, also by its public names; of someone's own its neighbours, too.

    These lie in ``homes`` or in the project, from where alone they can be imported.
    """
    names = []
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            ours = [alias.name.removeprefix("sat_core.") for alias in node.names if alias.name.startswith("sat_core.")]
            names += [name for name in ours if _file(name).exists()]
        if not path.is_relative_to(PACKAGE):
            names += _neighbours(node, homes)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sat_core"):
            below = node.module.removeprefix("sat_core").lstrip(".")
            names += [below] if below else []
            submodules = [f"{below}.{alias.name}".lstrip(".") for alias in node.names]
            names += [name for name in submodules if _file(name).is_file()]
            names += [] if below else [_homes()[alias.name] for alias in node.names if alias.name in _homes()]
    return names


def _neighbours(node: ast.AST, homes: tuple[Path, ...]) -> list[str]:
    """The files that a statement imports which are no installed package's, as seen from the working directory."""
    if not isinstance(node, (ast.Import, ast.ImportFrom)):
        return []
    parts = [name.split(".") for name in plugins.imported(node) if name.split(".")[0] != "sat_core"]
    steps = [one[: i + 1] for one in parts for i in range(len(one))]
    project = [PACKAGE.parent] if (PACKAGE.parent / "pyproject.toml").exists() else []
    places = [Path(home, *step) for step in steps for home in (*homes, *project)]
    found = [file for place in places for file in plugins.files(place) if file.is_file()]
    return [seen_from(Path(), file) for file in dict.fromkeys(found)]


@cache
def _homes() -> dict[str, str]:
    """The names that the package itself has for everyone -> the modules that they are from."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {
        alias.name: str(node.module).removeprefix("sat_core.")
        for node in imports
        if str(node.module).startswith("sat_core.")
        for alias in node.names
    }


@cache
def _hash(path: Path) -> str:
    tree = _WithoutText().visit(_parsed(path))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


class _WithoutText(ast.NodeTransformer):
    """Code without what only people read: docstrings, log lines, the sentences of errors."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        value = node.value
        is_text = isinstance(value, ast.Constant) and isinstance(value.value, str)
        is_log = isinstance(value, ast.Call) and ast.unparse(value.func) in SAYING
        return None if is_text or is_log else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            node.exc = node.exc.func
        return node


def environment() -> dict[str, object]:
    """Versions, platform and git commit (None outside a checkout) for the records."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES} | {"sat-core": __version__},
        "git_commit": git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def git_commit() -> str | None:
    """The commit of the source, with ``+changes`` where it is not committed; None outside a checkout."""
    try:
        git = ["git", "-C", str(PACKAGE)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True
        ).stdout
        return commit + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
