"""Where a result comes from: source fingerprints, package versions, git commit. Torch is not imported here."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from sat_core import __version__
from sat_core.config import Run

PACKAGE = Path(__file__).parent
PACKAGES = ("torch", "torchvision", "pyautoattack", "numpy", "scikit-learn", "snakemake")


@cache
def fingerprint(*modules: str) -> str:
    """A short hash of the code behind the named modules of this package, such as ``training`` or ``defenses.psat``.

    Covers every sat_core module that they import, directly or not. Comments, docstrings and layout do not count, so
    that tidying up does not throw away a hundred GPU hours.
    """
    digest = hashlib.sha256()
    for module in sorted(_closure(frozenset(modules))):
        digest.update(f"{module}\n{_code(_file(module))}\n".encode())
    return digest.hexdigest()[:16]


@cache
def _closure(modules: frozenset[str]) -> frozenset[str]:
    found: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module in found:
            continue
        found.add(module)
        todo += [name for name in _imports(_file(module)) if name not in found]
    return frozenset(found)


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imports(path: Path) -> list[str]:
    """The modules of this package that a file imports with ``from sat_core.x import ...``."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sat_core"):
            below = node.module.removeprefix("sat_core").lstrip(".")
            names += [below] if below else []
            submodules = [f"{below}.{alias.name}".lstrip(".") for alias in node.names]
            names += [name for name in submodules if _file(name).is_file()]
    return names


@cache
def _code(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [
                part
                for part in node.body
                if not (
                    isinstance(part, ast.Expr)
                    and isinstance(part.value, ast.Constant)
                    and isinstance(part.value.value, str)
                )
            ]
    return ast.dump(tree)


def training_digest(run: Run) -> str:
    """A fingerprint of everything a run's weights depend on: its configuration and the code of training."""
    return run.digest(fingerprint("training", f"defenses.{run.base}"))


def evaluation_digest(run: Run) -> str:
    """A fingerprint of everything AutoAttack's verdict depends on: the trained weights' own and the evaluation's."""
    return run.digest(training_digest(run), run.evaluation_config, fingerprint("evaluation"))


def data_digest(run: Run) -> str:
    """A fingerprint of what the prepared data depends on."""
    text = json.dumps([run.data.model_dump(mode="json"), run.validation.model_dump(mode="json"), fingerprint("data")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def environment() -> dict[str, object]:
    """Versions, platform and git commit (None outside a checkout) for the records."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES} | {"sat-core": __version__},
        "git_commit": _git_commit(),
    }


@cache
def _git_commit() -> str | None:
    try:
        git = ["git", "-C", str(PACKAGE)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True
        ).stdout
        return commit + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
