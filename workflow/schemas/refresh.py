"""Write what the classes of sat_core/study say in other forms: JSON schemas, with which editors complete and check
study and dataset files as one types, and docs/settings.md."""

import json
from inspect import cleandoc, getdoc
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from sat_core import defenses, difficulty, models
from sat_core.study import defense_names
from sat_core.study import settings as sections
from sat_core.study.file import DatasetFile, StudyFile, Table

ROOT = Path(__file__).resolve().parents[2]
TABLE = "| setting | allowed | if not set | meaning |\n| :-- | :-- | :-- | :-- |\n"
TEXT = {"integer": "whole number", "number": "number", "string": "word", "boolean": "true, false", "object": "mapping"}


def main() -> None:
    """Write all of them."""
    for name, model in (("study", StudyFile), ("dataset", DatasetFile)):
        path = Path(__file__).with_name(f"{name}.schema.json")
        path.write_text(json.dumps(model.model_json_schema(), indent=2) + "\n", encoding="utf-8")
    (ROOT / "docs/settings.md").write_text(settings(), encoding="utf-8")


def settings() -> str:
    """The content of docs/settings.md."""
    parts = [
        "# Every setting\n",
        "Written by `make schemas` from the classes that check a study. The sections stand in\n"
        "`config/datasets/<dataset>.yaml`, and under `set:` of an override; what is marked — must be set there.\n"
        "Numbers may be fractions, such as 1/4. Epochs count from 0.\n",
        "## Models\n\nThose of the package; one that does not fit the images says so before anything runs.\n",
        *(f"- `{name}`: {about(name)}" for name in sorted(models.names())),
        "",
        section("A study", StudyFile),
        section("A table of a study", Table),
    ]
    for name in sections.Settings.model_fields:
        if name != "options":
            parts.append(section(f"`{name}`", getattr(sections, name.capitalize())))
    parts.append(section("`curriculum`, an option of the self-paced defenses", difficulty.Curriculum))
    for name in sorted(defense_names()):
        found = defenses.find(name)
        if found.model_fields:
            parts.append(section(f"`options` of `{name}`", found))
    return "\n".join(parts)


def about(name: str) -> str:
    """What a network's function says of it first."""
    said = getdoc(models._builder(name, None)) or ""
    return " ".join(said.split("\n\n")[0].replace("``", "`").split())


def section(title: str, model: type[BaseModel]) -> str:
    """A heading, what the class says of itself, and a row a field."""
    schema = model.model_json_schema()
    rows = [
        f"| `{name}` | {allowed(field, schema)} | {default(field, name in schema.get('required', ()))} | "
        f"{field.get('description', '').replace('|', '&#124;')} |"
        for name, field in schema["properties"].items()
    ]
    return f"## {title}\n\n{cleandoc(model.__doc__)}\n\n{TABLE}" + "\n".join(rows) + "\n"


def allowed(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """The values that a field of a JSON schema takes, in words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return (
            "see `curriculum`" if name == "Curriculum" else "{" + ", ".join(schema["$defs"][name]["properties"]) + "}"
        )
    if "anyOf" in field:
        return " or ".join(allowed(part, schema) for part in field["anyOf"] if part.get("type") != "null")
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if "prefixItems" in field:
        return "[" + "; ".join(allowed(part, schema) for part in field["prefixItems"]) + "]"
    if field.get("type") == "array":
        return f"list of: {allowed(field['items'], schema)}"
    if isinstance(field.get("type"), list):
        return "number or fraction"
    text = TEXT.get(field.get("type"), "")
    for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
        text += f" {sign} {field[key]}" if key in field else ""
    return text


def default(field: dict[str, Any], required: bool) -> str:
    """What holds where nothing is said."""
    if required:
        return "—"
    return f"`{json.dumps(field['default'])}`" if field.get("default") not in (None, "") else ""


if __name__ == "__main__":
    main()
