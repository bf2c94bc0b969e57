"""A model card, ``README.md`` in the folder of a judged run: what it is worth, where it is from, how to load it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sat_core.report.numbers import AFTER, evaluated, interval
from sat_core.runs import folder
from sat_core.runs.files import atomic
from sat_core.study import Run


def write_card(run: Run) -> None:
    """Write the card from the run's records, or remove one that is of other weights than there are now.

    A derived product: `report` writes it anew. Raises ConfigError where a record is damaged.
    """
    path = run.folder / folder.CARD
    row, record = evaluated(run), folder.record_of(run, "train")
    if row is None or record is None:
        path.unlink(missing_ok=True)
        return
    text = card(run, row, record)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with atomic(path) as file:
            file.write(text)


def card(run: Run, row: dict[str, Any], record: dict[str, Any]) -> str:
    """The card's text, from a row of :func:`sat_core.report.numbers.results` and ``run.json``."""
    parts = [title(run), accuracies(run, row), "## Load it", loading(run), "## Where it is from", origin(run, record)]
    return "\n\n".join(parts) + "\n"


def title(run: Run) -> str:
    """What it is, in a heading and a sentence."""
    how = "not trained here" if run.external else f"trained with {run.base}, seed {run.seed}"
    return (
        f"# {run.defense}: {run.model} for {run.dataset}\n\n"
        f"{how.capitalize()}, for perturbations of at most {run.epsilon} a pixel (L∞; pixels in [0, 1])."
    )


def accuracies(run: Run, row: dict[str, Any]) -> str:
    """The verdict with intervals, and what speaks against believing it."""
    lines = ["| accuracy | % | 95 % interval |", "| :-- | --: | :-- |"]
    names = {"clean": "clean", "robust": f"robust: AutoAttack ({row['version']}, L∞, ε = {run.epsilon})"}
    for name, said in names.items():
        low, high = interval(row[name], math.nan, 1, row["n"])
        lines.append(f"| {said} | {row[name]:.2f} | [{low:.1f}, {high:.1f}] |")
    after = ", ".join(f"{title} {row[name]:.2f}" for name, title in AFTER.items())
    notes = [f"On {row['n']} test images; the interval is for what others might give. {after}."]
    notes += ["A trivial classifier: constant, or no better than a constant."] * row["trivial"]
    notes += [f"Judged in {row['precision']}, not float32."] * (row["precision"] != "float32")
    notes += [f"AutoAttack warns that it may be too kind: {row['flags']}."] * bool(row["flags"])
    notes += [f"Of other settings or code than the present: {row['stale']}."] * bool(row["stale"])
    return "\n".join(lines) + "\n\n" + " ".join(notes)


def loading(run: Run) -> str:
    """A few lines of Python that load it."""
    about = run.network
    given = [f"{json.dumps(about['name'])},", *(f"{key}={about[key]}," for key in ("image", "classes", "mean", "std"))]
    file = Path(about["file"] or "").name
    given += [f"file={json.dumps(file)},  # whose code this is: put it beside the weights"] if file else []
    arguments = "\n    ".join(given)
    return (
        "```python\nfrom safetensors.torch import load_file\nfrom sat_core import models\n\n"
        f"model = models.build(\n    {arguments}\n)\n"
        f'model.load_state_dict(load_file("{folder.WEIGHTS}"))\n'
        "model.eval()  # images float32 (N, C, H, W) in [0, 1] -> logits; it normalises inside\n```"
    )


def origin(run: Run, record: dict[str, Any]) -> str:
    """Provenance, a line each."""
    about, software = record.get("external"), record["environment"]
    lines = [f"`{folder.WEIGHTS}`, SHA-256 `{record['files'][folder.WEIGHTS]}`"]
    if about:
        file, model = Path(about["file"]).name, Path(about["model"]).name
        lines += [f"brought in from `{file}`, SHA-256 `{about['weights']}`, as the network `{model}`"]
        lines += about["doubts"]
    else:
        lines += [f"epoch {record['best_epoch'] + 1} of {run.training.epochs}, {record['seconds']:.0f} s"]
    packages = software["packages"]
    lines += [f"on {record['device']}; torch {packages['torch']}, sat-core {packages['sat-core']}"]
    lines += [
        f"commit {software['git_commit'] or 'unknown'}; all settings: `run.json`; image by image: `{folder.IMAGES}`"
    ]
    return "\n".join(f"- {line}" for line in lines)
