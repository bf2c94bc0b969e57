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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def extended(content: Any, path: Path, seen: tuple[Path, ...] = ()) -> Any:
    """A study's content on top of that of the study which it ``extends``; raises ConfigError where that is a circle.

    Its overrides come after the base's; its plugins, and what its tables list, are added to the base's. Mappings are
    merged, anything else is replaced. Plugins and externals keep being seen from their own file.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("extends"), str):
        return content
    below = path.parent / content["extends"]
    if below.resolve() in (found := (*seen, path.resolve())):
        raise ConfigError(f"{path}: extends: {content['extends']} extends this study in turn")
    base = extended(read_yaml(below), below, found)
    if not isinstance(base, Mapping):
        raise ConfigError(f"{below}: a mapping (key: value) is expected")

    def moved(name: Any) -> str:
        return Path(os.path.relpath(below.parent / str(name), path.parent)).as_posix()

    if isinstance(base.get("plugins"), list):
        base = {**base, "plugins": [moved(name) for name in base["plugins"]]}
    if isinstance(base.get("external"), Mapping):
        base = {**base, "external": {name: _moved(about, moved) for name, about in base["external"].items()}}
    added = {
        "overrides": joined(base.get("overrides"), content.get("overrides"), again=True),
        "plugins": joined(base.get("plugins"), content.get("plugins")),
        "tables": _tables(base.get("tables"), content.get("tables")),
    }
    return {**merge(base, content), **{key: value for key, value in added.items() if value is not None}}


def joined(old: Any, new: Any, again: bool = False) -> Any:
    """Two lists in one; what both hold stands there once, unless it counts ``again``. Of anything else, what is new."""
    if not isinstance(old, list) or not isinstance(new, list):
        return old if new is None else new
    return [*old, *(item for item in new if again or item not in old)]


def _tables(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return old if new is None else new
    both = {name: of for name, of in new.items() if isinstance(of, Mapping) and isinstance(old.get(name), Mapping)}
    more = {name: {key: joined(old[name].get(key), value) for key, value in of.items()} for name, of in both.items()}
    return merge(merge(old, new), more)


def _moved(external: Any, moved: Callable[[Any], str]) -> Any:
    if not isinstance(external, Mapping):
        return external
    names_file = ".py:" in str(external.get("model"))
    return {
        key: moved(value) if key == "weights" or (key == "model" and names_file) else value
        for key, value in external.items()
    }


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` on top; nested mappings are merged, all else is replaced."""
    result = {**base, **over}
    for key in base.keys() & over.keys():
        old, new = base[key], over[key]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            result[key] = merge(old, new)
    return result
