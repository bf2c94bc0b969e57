"""Judging a trained run with AutoAttack on the test images, resumable, recorded image by image."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyautoattack
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sat_core.attacks import cross_entropy, uniform_start
from sat_core.errors import ConfigError
from sat_core.judge import ATTACKS, attack_standing, square_lowers, warnings_of_autoattack
from sat_core.runs import folder
from sat_core.runs.data import load
from sat_core.runs.device import device_name, precision_on, take_device
from sat_core.runs.files import atomic, checksum, read_json, sole_writer, write_json
from sat_core.runs.heartbeat import Heart, beating
from sat_core.runs.images import Images
from sat_core.runs.judging import Judging
from sat_core.runs.network import measuring_attack, predict, trained_model
from sat_core.study import Run
from sat_core.study.settings.evaluation import Precision

log = logging.getLogger(__name__)

EXAMPLES = 2
PARTS = "autoattack.parts"
"""Folder of the blocks judged so far; gone once they are merged."""


def evaluate(run: Run, shard: tuple[int, int] | None = None) -> None:
    """Judge a trained run: writes ``autoattack.csv`` (one row an image) and ``autoattack.json`` (the summary).

    Where the last epoch is judged, too, ``autoattack-last.csv``, and ``last`` in the summary. Before them
    ``examples.npz``: see :func:`write_examples`.

    The unit of work is a block of ``batch_size`` images, whose progress is saved after each of the four attacks, so
    that whatever interrupts the work, little is lost. With ``shard`` (i, n), only every n-th block from the i-th on is
    judged and nothing is merged; without, the blocks that are left, then all are merged. The result does not depend
    on who judged which block. Raises ConfigError if the run has not been trained with its present configuration.

    ``broken_by`` names the attack that broke an image, ``clean`` if it was misclassified to begin with, and is empty
    for a robust one.
    """
    device = take_device(run)
    work = "evaluate" if shard is None else f"evaluate-{shard[0]}-of-{shard[1]}"
    with sole_writer(run.folder, work), beating(run, "evaluate", work) as heart:
        if shard is None and folder.finished(run, "evaluate"):
            log.info("%s is judged: nothing to do", run.folder)
            return
        (images,) = load(run, "test")
        blocks = {
            str(which): judged_blocks(run, which, images, device, shard or (1, 1), heart)
            for which in run.evaluation.weights
        }
        if shard is None:
            write_examples(run, images, device)
            write_results(run, blocks, device)


def judged_blocks(
    run: Run, which: str, images: Images, device: torch.device, shard: tuple[int, int], heart: Heart
) -> list[dict[str, Any]]:
    """The verdicts on this shard's blocks, of the ``best`` or the ``last`` weights."""
    precision = precision_on(device, run.evaluation.precision)
    model, weights = trained_model(run, device, which, precision)
    count, size = min(len(images), run.evaluation.images or len(images)), run.evaluation.batch_size
    starts, (i, n), blocks = range(0, count, size), shard, []
    judging = Judging(heart, len(starts[i - 1 :: n]), run.data.classes, run.evaluation.iterations)
    for first in tqdm(starts[i - 1 :: n], f"AutoAttack, {which}", leave=False, disable=None):
        x, y = (tensor.to(device) for tensor in images.batch(slice(first, min(first + size, count))))
        path = run.folder / PARTS / f"{which}{first // size:04}.json"
        blocks.append(judged_block(run, path, model, weights, precision, first // size, x, y, judging))
        judging.block_is_done(blocks[-1])
        log.info("%s weights: block %d of %d judged", which, first // size + 1, len(starts))
    return blocks


def judged_block(
    run: Run,
    path: Path,
    model: nn.Module,
    weights: str,
    precision: Precision,
    number: int,
    x: Tensor,
    y: Tensor,
    judging: Judging,
) -> dict[str, Any]:
    """The verdict on one block, from its file as far as that goes, if that is on the same ``weights`` (a checksum)."""
    prediction = predict(model, x)
    block: dict[str, Any] = {
        "run": run.id.path,
        "made_of": folder.present(run, "evaluate"),
        "weights": weights,
        "labels": y.tolist(),
        "predictions": prediction.tolist(),
        "broken_by": ["" if right else "clean" for right in (prediction == y).tolist()],
        "batch_size": run.evaluation.batch_size,
        "precision": [],
        "seconds": {},
        "flags": [],
    }
    if path.exists():
        try:
            saved = read_json(path)
            block = saved if all(saved.get(key) == block[key] for key in ("run", "made_of", "weights")) else block
        except ConfigError as error:
            log.warning("%s; the block is judged again", error)
    for attack in ATTACKS[len(block["seconds"]) :]:
        began = time.perf_counter()
        with warnings_of_autoattack() as flags, judging.attack(model, attack, block):
            block["batch_size"] = attack_standing(
                *(model, x, y, attack),
                epsilon=run.epsilon.value,
                seed=run.evaluation.seed + number,
                classes=run.data.classes,
                broken_by=block["broken_by"],
                batch_size=block["batch_size"],
                iterations=run.evaluation.iterations,
            )
        block["flags"] = sorted({*block["flags"], *flags})
        block["precision"] = sorted({*block["precision"], precision})
        block["seconds"][attack] = time.perf_counter() - began
        write_json(path, block)
    return block


def write_results(run: Run, blocks: dict[str, list[dict[str, Any]]], device: torch.device) -> None:
    """Merge all blocks, in order, into ``autoattack.csv`` and ``autoattack.json``; the last epoch's beside it."""
    summary, files = {}, {}
    for which, judged in blocks.items():
        columns = (
            [value for block in judged for value in block[key]] for key in ("labels", "predictions", "broken_by")
        )
        rows = [(i, *row) for i, row in enumerate(zip(*columns, strict=True))]
        seconds = {attack: sum(block["seconds"][attack] for block in judged) for attack in ATTACKS}
        found = summary_of(run, [row[3] for row in rows], seconds, min(block["batch_size"] for block in judged))
        square = ["square"] if square_lowers([row[3] for row in rows]) else []
        found["precision"] = ", ".join(sorted({used for block in judged for used in block["precision"]}))
        found["flags"] = sorted({flag for block in judged for flag in block["flags"]}.union(square))
        if which == "best":
            folder.write_images(run, folder.IMAGES, rows)
            summary = found | {"weights": judged[0]["weights"], "device": device_name(device)}
        else:
            folder.write_images(run, folder.LAST_IMAGES, rows)
            summary["last"] = found | {"weights": judged[0]["weights"]}
            files = {folder.LAST_IMAGES: checksum(run.folder / folder.LAST_IMAGES)}
    folder.write_record(run, "evaluate", summary | {"files": files})
    shutil.rmtree(run.folder / PARTS)


def write_examples(run: Run, images: Images, device: torch.device) -> None:
    """Attack the first test images of two classes with the training PGD, never stopped: ``examples.npz``, to look at.

    ``clean`` and ``perturbed`` float32 (n, C, H, W) in [0, 1]; ``label`` and the predictions on both, int64 (n,);
    ``weights``, a checksum of those that were attacked.
    """
    model, weights = trained_model(run, device)
    labels = images.labels.tolist()
    first = [labels.index(label) for label in dict.fromkeys(labels)][:EXAMPLES]
    x, y = (tensor.to(device) for tensor in images.batch(torch.tensor(first)))
    attack = measuring_attack(run)
    torch.manual_seed(run.evaluation.seed)
    perturbed = attack(model, x, cross_entropy(y), start=uniform_start(x, attack.epsilon)).x
    predictions = {"prediction": predict(model, x), "prediction_perturbed": predict(model, perturbed)}
    arrays: dict[str, Tensor] = {"clean": x, "perturbed": perturbed, "label": y, **predictions}
    with atomic(run.folder / "examples.npz", "wb") as file:
        content: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in arrays.items()}
        np.savez_compressed(file, weights=weights, **content)


def summary_of(run: Run, broken_by: list[str], seconds: dict[str, float], batch_size: int) -> dict[str, Any]:
    """The content of ``autoattack.json``: accuracies in [0, 1] out of what broke each image."""
    standing, n = len(broken_by) - broken_by.count("clean"), len(broken_by)
    clean, after = standing / n, {}
    for attack in ATTACKS:
        standing -= broken_by.count(attack)
        after[attack] = standing / n
    cut = run.evaluation.iterations
    return {
        "epsilon": run.epsilon.text,
        "norm": "Linf",
        "version": "standard" if cut is None else f"standard, cut to {cut} iterations an attack",
        "pyautoattack": pyautoattack.__version__,
        "seed": run.evaluation.seed,
        "batch_size": batch_size,
        "n": n,
        "clean": clean,
        "after": after,
        "robust": after[ATTACKS[-1]],
        "seconds": seconds,
    }
