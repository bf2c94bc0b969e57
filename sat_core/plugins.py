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

from sat_core.errors import ConfigError, in_one_line


class Plugin(NamedTuple):
    """What a file offers: name in a study -> name in the file.

    Every public class with a base class is a defense, every public function that needs two arguments, ``(image,
    classes)``, a network; each under its name in small letters.
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
        {node.name.lower(): node.name for node in functions if _needs(node.args) == 2},
    )
    if not found.defenses and not found.networks:
        raise ConfigError(
            f"plugin {path}: holds neither a subclass of Defense nor a function (image, classes) that makes a network"
        )
    return found


def _needs(arguments: ast.arguments) -> int:
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return positional + sum(default is None for default in arguments.kw_defaults)


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


def homes(path: Path) -> list[Path]:
    """From where a file may import its neighbours: the working directory, the file's folder."""
    return [Path.cwd(), path.resolve().parent]


def beside(study: Path, name: str) -> str:
    """A file named as seen from a study's file, as seen from the working directory."""
    return Path(os.path.relpath(study.parent / name)).as_posix()


@cache
def load(path: str) -> ModuleType:
    """The file as a module; raises ConfigError if running it fails.

    It may import what lies in the working directory or beside it, where nothing of that name is installed. Both stay on
    Python's path, as its functions may import, too.
    """
    sys.path += [home for home in map(str, homes(Path(path))) if home not in sys.path]
    name = f"sat_core_plugin_{Path(path).stem}_{abs(hash(str(Path(path).resolve())))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugin {path}: is no Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"plugin {path}: cannot be imported: {in_one_line(error)}") from None
    _refuse_namesakes(Path(path))
    return module


def _refuse_namesakes(path: Path) -> None:
    """Raise ConfigError where not a neighbour was imported but what has its name: installed, or another's neighbour."""
    nodes = [node for node in ast.walk(_parsed(path)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {name.split(".")[0] for node in nodes for name in imported(node)}
    for name in sorted(modules - sys.stdlib_module_names - {"sat_core"}):
        there = [file.resolve() for home in homes(path) for file in files(home / name) if file.is_file()]
        got = getattr(sys.modules.get(name), "__file__", None)
        if there and got and Path(got).resolve() not in there:
            raise ConfigError(f"plugin {path}: '{name}' is {got} here, and not {there[0]}: give yours another name")


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that a statement may import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not node.module or node.level:
        return []
    return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]


def files(place: Path) -> tuple[Path, Path]:
    """Where the module at a place may be."""
    return place.with_name(f"{place.name}.py"), place / "__init__.py"
