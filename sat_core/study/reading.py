"""YAML in: safe, keys given once, and one sentence where it is no YAML."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sat_core.errors import ConfigError


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
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: too many levels") from None
    # dates that do not exist, tags that do not fit
    except (yaml.YAMLError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def seen_from(place: Path, path: str | Path) -> str:
    """What a file is called as seen from a folder; ``..`` leads from where that really is, symlink or not."""
    path = Path(path)
    return Path(os.path.relpath(path.parent.resolve() / path.name, place.resolve())).as_posix()


def chain(content: Any, path: Path) -> list[tuple[Path, Any]]:
    """A study's file with its content, then that which it ``extends``, and so on; raises ConfigError for a circle."""
    found = [(path, content)]
    while isinstance(content, Mapping) and (name := content.get("extends")) is not None:
        if not isinstance(name, str):
            raise ConfigError(f"{path}: extends: a word is expected, not {name!r}")
        above, path = path, path.parent / name
        if path.resolve() in (file.resolve() for file, _ in found):
            raise ConfigError(f"{above}: extends: {name} extends this study in turn")
        content = read_yaml(path)
        if not isinstance(content, Mapping):
            raise ConfigError(f"{path}: a mapping (key: value) is expected")
        found.append((path, content))
    return found


def extended(files: list[tuple[Path, Any]]) -> Any:
    """A study's content on top of that of the studies that it extends: what :func:`chain` has found.

    Its overrides come after the base's; its plugins, and what its tables list, are added to the base's. Mappings are
    merged, anything else is replaced. Plugins and externals keep being seen from their own file.
    """
    (path, content), *others = files
    if not others:
        return content
    base, below = extended(others), others[0][0]

    def moved(name: Any) -> str:
        return seen_from(path.parent, below.parent / str(name))

    if isinstance(base.get("plugins"), list):
        base = {**base, "plugins": [moved(name) for name in base["plugins"]]}
    if isinstance(base.get("external"), Mapping):
        base = {**base, "external": {name: _moved(about, moved) for name, about in base["external"].items()}}
    below_it, on_top = ({key: part[key] for key in ("plugins", "tables") if key in part} for part in (base, content))
    whole = merge(base, content) | merge(below_it, on_top, append=True)
    if isinstance(base.get("overrides"), list) and isinstance(content.get("overrides"), list):
        whole["overrides"] = base["overrides"] + content["overrides"]  # all of them: the last word counts
    return whole


def _moved(external: Any, moved: Callable[[Any], str]) -> Any:
    if not isinstance(external, Mapping):
        return external
    names_file = ".py:" in str(external.get("model"))
    return {
        key: moved(value) if key == "weights" or (key == "model" and names_file) else value
        for key, value in external.items()
    }


def merge(base: Mapping[str, Any], over: Mapping[str, Any], append: bool = False) -> dict[str, Any]:
    """``base`` with ``over`` on top; nested mappings are merged, lists appended to if asked, all else is replaced."""
    result = {**base, **over}
    for key in base.keys() & over.keys():
        old, new = base[key], over[key]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            result[key] = merge(old, new, append)
        elif append and isinstance(old, list) and isinstance(new, list):
            result[key] = [*old, *(item for item in new if item not in old)]
    return result
