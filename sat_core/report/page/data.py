"""What the page's scripts draw from: numbers as JSON, of the study in sum, and run by run."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pydantic
from PIL import Image

from sat_core.report.figures.accuracy import known
from sat_core.report.figures.landscape import PLANES
from sat_core.report.figures.style import appearance, blocks, heading
from sat_core.report.figures.training import DYNAMICS
from sat_core.report.page.entries import Entry
from sat_core.report.page.parts import address
from sat_core.study import Run, Study
from sat_core.study.address import AXES
from sat_core.study.file import Where
from sat_core.study.fingerprint import flat
from sat_core.study.reading import merge
from sat_core.study.settings import Settings

Json = Any
SYMBOLS = {
    **{"o": "circle", "s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "P": "cross"},
    **{"*": "star", "X": "x", "<": "triangle-left", ">": "triangle-right", "p": "pentagon", "h": "hexagon"},
    **{"d": "diamond-tall", "8": "octagon", "H": "hexagon2"},
}
"""Matplotlib's names of markers -> plotly's."""
CURVATURE = ("selected", "epochs", "spectrum")
SIGNS = {r"\lambda": "λ", r"\epsilon": "ε", "_\\mathrm{max}": " max"}


def of(study: Study, entries: list[Entry]) -> tuple[dict[str, Json], Json]:
    """Run -> its data, and the data of the study: its tables, their runs in short, what axes and columns are called.

    ``images``: index and label of each test image, once for all runs that were judged on the same.
    """
    images: list[Json] = []
    each = {entry.run.id.path: about(study, entry, images) for entry in entries}
    overview = {
        "tables": {name: outline(study, name) for name in study.file.tables},
        "runs": {entry.run.id.path: summary(study, entry) for entry in entries},
        "quantities": {column: [plain(label), scale] for column, (label, scale) in DYNAMICS.items()},
        "planes": {plane: [plain(axis) for axis in axes] for plane, axes in PLANES.items()},
        "images": images,
    }
    return each, overview


def outline(study: Study, name: str) -> Json:
    """The runs of a table, what is drawn in panels of its own, and the looks of its defenses."""
    table = study.file.tables[name]
    looks = appearance(study, table)
    places = [(model, epsilon.text) for model, epsilon in blocks(table)]
    return {
        "runs": [id.path for id in table.run_ids],
        "landscapes": [id.path for id in table.landscape_ids],
        "blocks": [[model, e.text, plain(heading(table, model, e))] for model, e in blocks(table)],
        "looks": {defense: [colour, SYMBOLS[marker]] for defense, (colour, marker) in looks.items()},
        "published": [
            [row.defense, places.index((row.model, row.epsilon)), row.clean, row.robust, row.origin]
            for row in known(table).itertuples()
        ],
    }


def summary(study: Study, entry: Entry) -> Json:
    """One run in short: its address, its accuracies in %, how it stands, and what there is of it."""
    run, result = entry.run, entry.result
    said: Json = {axis: str(getattr(run, axis)) for axis in AXES}
    said |= {"name": study.display(run.defense), "state": entry.state}
    said |= {key: round(result[key], 2) if result else None for key in ("clean", "robust")}
    said |= {"trivial": bool(result.get("trivial")), "stale": "out of date" in (p.state for p in entry.problems)}
    return said | {"external": entry.is_external, "begun": len(entry.history) > 0, "planes": bool(entry.planes)}


def about(study: Study, entry: Entry, images: list[Json]) -> Json:
    """Everything of one run; null where there is nothing."""
    record = dict(entry.record)
    config = record.pop("config", None) or entry.run.model_dump(mode="json")
    return {
        "notes": [str(problem) for problem in entry.problems] + entry.accepted,
        "history": {name: rounded(column) for name, column in entry.history.items()} or None,
        "examples": examples(entry),
        "verdict": verdict(entry.images, list(entry.verdict["after"]), images) if entry.result else None,
        "curvature": {key: entry.curvature[key] for key in CURVATURE} if entry.curvature else None,
        "landscape": landscape(entry.planes) if entry.planes else None,
        "settings": settings(study, entry.run, config),
        "config": config,
        "records": {"run.json": record, "autoattack.json": entry.verdict},
    }


def verdict(found: pd.DataFrame, attacks: list[str], images: list[Json]) -> Json:
    """Of each image, in their order, the place in ``names`` of what broke it: a digit; "" stands for nothing did.

    ``wrong``: the predictions on those that were wrong when clean; ``images``: where in the list of test images.
    """
    names = ["clean", *attacks, ""]
    shared = {"index": found["index"].tolist(), "label": found["label"].tolist()}
    if shared not in images:
        images.append(shared)
    return {
        "names": names,
        "broken": "".join(str(names.index(name)) for name in found["broken_by"]),
        "wrong": found.loc[found["broken_by"] == "clean", "prediction"].tolist(),
        "images": images.index(shared),
    }


def examples(entry: Entry) -> Json:
    """The attacked images: each clean, perturbed, and what was added to it, as addresses of PNGs."""
    file, epsilon = entry.examples, entry.run.epsilon.value
    return [
        {
            "label": int(label),
            "predictions": [int(file["prediction"][i]), int(file["prediction_perturbed"][i])],
            "clean": picture(file["clean"][i]),
            "perturbed": picture(file["perturbed"][i]),
            "perturbation": picture(0.5 + (file["perturbed"][i] - file["clean"][i]) / (2 * epsilon)),
        }
        for i, label in enumerate(file.get("label", ()))
    ]


def picture(image: np.ndarray) -> str:
    """An image (C, H, W) in [0, 1], grey or in colour, as the address of a PNG."""
    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]).save(buffer, "png")
    return address("image/png", buffer.getvalue())


def landscape(file: dict[str, np.ndarray]) -> Json:
    """Plane -> its axis and the loss over it, [i][j] at (axis[i], axis[j]); and what the network is worth."""
    planes = {
        plane: {"axis": rounded(file[f"{plane}_axis"]), "loss": [rounded(row) for row in file[f"{plane}_loss"]]}
        for plane in PLANES
        if f"{plane}_loss" in file
    }
    worth = {key: rounded(file[key].reshape(1))[0] for key in ("clean", "adversarial", "loss", "lambda_max")}
    return {"planes": planes, "worth": worth | {"trivial": bool(file["trivial"])}}


def settings(study: Study, run: Run, own: Json) -> Json:
    """Name, the study's default and the run's ``own`` value of each setting in which the two differ."""
    usual, mine = (
        dict(flat({section: content.get(section, {}) for section in Settings.model_fields}))
        for content in (default(study, run), own)
    )
    names = dict.fromkeys([*usual, *mine])
    return [[name, usual.get(name), mine.get(name)] for name in names if usual.get(name) != mine.get(name)]


def default(study: Study, run: Run) -> dict[str, Json]:
    """The run as it were if nothing were said of its like: the dataset's protocol, and what overrides say of all.

    A section that would be none without what is said of its like is as it is written.
    """
    file = study.dataset_file(run.dataset)
    merged = file.model_dump(exclude={"overrides"})
    for override in [*file.overrides, *study.file.overrides]:
        if override.where == Where():
            merged = merge(merged, override.set.model_dump(exclude_unset=True))
    for section in merged.keys() - {"options"}:
        kind = type(getattr(run, section))
        try:
            whole = kind.model_validate(merged[section])
        except pydantic.ValidationError:
            whole = kind.model_construct(**merged[section])
        merged[section] = whole.model_dump(mode="json", warnings=False)
    return merged


def rounded(values: Iterable[float]) -> list[float | None]:
    """To five digits, as short as JSON has them; null for what is no number."""
    kept = (float(f"{value:.5g}") for value in map(float, values))
    return [None if not math.isfinite(v) else int(v) if v.is_integer() else v for v in kept]


def plain(text: str) -> str:
    """A label of a figure without LaTeX."""
    for sign, letter in SIGNS.items():
        text = text.replace(sign, letter)
    return re.sub(r"\s+", " ", text.replace("$", ""))
