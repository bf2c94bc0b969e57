"""Files of a user's own: the defenses and networks in them, found by name without running them. Needs no torch."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from sat_core.errors import ConfigError


class Plugin(NamedTuple):
    """What a file offers: name in a study -> name in the file.

    Every public class with a base class is a defense, under its name in small letters; every public function of two
    arguments, ``(image, classes)``, is a network, under its name.
    """

    defenses: dict[str, str]
    networks: dict[str, str]


@cache
def read(path: Path) -> Plugin:
    """What the file offers; raises ConfigError where it is missing, is no Python, or offers nothing."""
    public = [node for node in _parsed(path).body if not getattr(node, "name", "_").startswith("_")]
    classes = [node for node in public if isinstance(node, ast.ClassDef) and node.bases]
    modules = [node for node in classes if any(ast.unparse(base).endswith("Module") for base in node.bases)]
    functions = [node for node in public if isinstance(node, ast.FunctionDef)]
    found = Plugin(
        {node.name.lower(): node.name for node in classes if node not in modules},
        {node.name: node.name for node in functions if len(node.args.args) == 2 and not node.args.defaults},
    )
    if not found.defenses and not found.networks:
        raise ConfigError(
            f"plugin {path}: holds neither a subclass of Defense nor a function (image, classes) that makes a network"
        )
    return found


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"plugin {path}: cannot be read: {error.strerror}") from None
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"plugin {path}: not valid Python: {error}") from None


@cache
def names(path: Path) -> frozenset[str]:
    """The functions and classes of a file, also those that it imports; raises ConfigError as :func:`read` does."""
    nodes = _parsed(path).body
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    imports = [alias for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    return frozenset(own | {alias.asname or alias.name for alias in imports})


def beside(study: Path, name: str) -> str:
    """A file named as seen from a study's file, as seen from the working directory."""
    return Path(os.path.relpath(study.parent / name)).as_posix()


@cache
def load(path: str) -> ModuleType:
    """The file as a module; raises ConfigError if running it fails."""
    name = f"sat_core_plugin_{Path(path).stem}_{abs(hash(str(Path(path).resolve())))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugin {path}: is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"plugin {path}: cannot be imported: {type(error).__name__}: {error}") from None
    return module
