"""What a run's work costs on this machine, piece by piece, at its real batch sizes: for `plan` to add up.

How many steps a stopping rule saves, and how many images stand, is for the study to find out; what a whole attack
costs, and one of which half a batch stops at once, is not. So a network that has learnt next to nothing will do.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from timeit import default_timer, timeit
from typing import Any, Literal, cast

import psutil
import pyautoattack
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.benchmark import timer as synchronized

from sat_core import models
from sat_core.attacks import PGD, InnerLoss, Iterate, Perturbation, StoppingRule, cross_entropy, uniform_start
from sat_core.errors import lacks_memory
from sat_core.hessian import Objective, gaussians
from sat_core.judge import LENGTHS
from sat_core.runs import folder
from sat_core.runs.data import load
from sat_core.runs.device import device_name, free_memory, peak_memory, take_device
from sat_core.runs.files import read_json, write_json
from sat_core.runs.network import at_once, predict, trained_model, validation_attack
from sat_core.runs.predict import left_to_others
from sat_core.runs.trainer import Trainer
from sat_core.study import Run, Study
from sat_core.study.settings.curvature import Curvature

log = logging.getLogger(__name__)

SECONDS = 0.2
"""For which each piece is repeated, once it is warm; the median counts. AutoAttack's are many, and the median over all
runs of a network: an eighth will do."""
SLOW = 5.0
"""Seconds after which a processor is not asked again, nor an attack timed on larger blocks: by then noise is small, and
time in proportion."""
HARMLESS = 1e-6
"""A radius at which no image breaks: all stand until the end."""


def measure(rehearsal: Study, run: Run, real: Run) -> None:
    """Measure the trained ``run`` of a rehearsal for the run that it rehearses: writes ``measured.json``.

    Seconds: ``startup``, ``training`` and ``judging``, as the functions of these names say; ``validation`` of an image
    that stands; ``curvature``, if the study asks for it or a landscape: an image's of a product of the Hessian with a
    vector, ``product``, and of the loss, ``loss``. ``left``: pieces that others have measured often enough.
    ``too_large``: pieces whose images the GPU's memory does not hold at once, measured on as many as it does.
    ``seconds`` that a piece was measured for; ``memory_mb``: the peak of the process and of the GPU, after each piece.
    """
    device = take_device(run)
    content = folder.measured_of(run, real) | {"startup": startup(run), "device": device_name(device)}
    content |= {"memory_mb": {}, "seconds": {}, "too_large": []}
    if device.type == "cuda":
        content["gpu_mb"] = torch.cuda.get_device_properties(device).total_memory / 1e6
    (images,) = load(run, "test")
    model, _ = trained_model(run, device)
    judged = min(real.evaluation.batch_size, real.evaluation.images or len(images))
    validated = at_once(real, model, device)
    x, y = (part.to(device) for part in images.batch(slice(0, max(validated, judged, real.curvature.batch_size))))
    pieces: dict[str, tuple[Callable[[int], Any], int]] = {
        "training": (lambda _: training(run), 1),
        "validation": (lambda n: validation(run, model, x[:n], y[:n]), validated),
        "judging": (lambda n: judging(model, x[:n], run.data.classes), judged),
    }
    if run.external:
        del pieces["training"]
    if not {"curvature", "landscape"}.isdisjoint(folder.stages_of(rehearsal, run.id)):
        curved = min(real.curvature.images, real.curvature.batch_size)
        pieces["curvature"] = (lambda n: curvature(model, x[:n], y[:n], real.curvature), curved)
    content["left"] = [name for name in left_to_others(run, rehearsal.runs, content) if name in pieces]
    for name in content["left"]:
        del pieces[name]
    precision: dict[str, Literal["float32", "tf32"]] = {  # a training leaves its own behind
        "judging": real.evaluation.precision if device.type == "cuda" else "float32"
    }
    for name, (piece, asked) in pieces.items():
        began = time.monotonic()
        models.compute_in(precision.get(name, "float32"), cast(models.Normalized, model))
        content[name], fitting = as_many_as_fit(piece, asked, device)
        content["seconds"][name] = time.monotonic() - began
        content["too_large"] += [name] if fitting < asked else []
        content["memory_mb"][name] = peak_memory(device)
    write_json(run.folder / folder.MEASURED, content)
    log.info("%s: measured", run.folder)


def as_many_as_fit(piece: Callable[[int], Any], images: int, device: torch.device) -> tuple[Any, int]:
    """What ``piece`` gives of so many images or, while the GPU's memory is short, of half as many; and how many."""
    while True:
        free_memory()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            return piece(images), images
        except RuntimeError as error:
            if images == 1 or not lacks_memory(error):
                raise
        images //= 2


def startup(run: Run) -> float:
    """Seconds that this process has lived, less those of what it has trained and judged: loading, reading, writing."""
    process, worked = psutil.Process().create_time(), 0.0
    for stage in ("train", "evaluate"):
        path = run.folder / folder.STAGES[stage].record
        if path.exists() and path.stat().st_mtime > process:
            worked += folder.seconds_of(read_json(path)) or 0
    return max(0.0, time.time() - process - worked)


def seconds(work: Callable[[], object], least: float = SECONDS) -> float:
    """The median time of ``work``, done for ``least`` seconds and once before; a GPU's queue is waited for.

    On a processor the time of once, where that is longer than SLOW.
    """
    on_gpu = torch.cuda.is_initialized()
    if not on_gpu:
        if (once := timeit(work, number=1)) > SLOW:
            return once
        if once > least:
            return timeit(work, number=1)  # as the timer would, but for its own first time
    clock = synchronized if on_gpu else default_timer  # the former would begin to use a GPU, were there one
    timer = Timer("work()", timer=clock, globals={"work": work}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=least).median)


class Asked:
    """Whether a stopping rule was, ``ever``; a list of it would make each call another kind of call to Graphs."""

    ever = False


@dataclass(frozen=True)
class Paced(PGD):
    """The same attack, whose stopping rule is asked and not obeyed: the first ``share`` of the batch goes on."""

    share: float = 1.0
    asked: Asked = field(default_factory=Asked)

    def __call__(
        self, model: nn.Module, x: Tensor, loss: InnerLoss, *, keep_going: StoppingRule | None = None, **rest: Any
    ) -> Perturbation:
        if keep_going is None:
            return super().__call__(model, x, loss, **rest)

        self.asked.ever = True
        rule = functools.partial(first_ones, self.share * len(x), keep_going)  # as open as it is: see Graphs
        return super().__call__(model, x, loss, keep_going=rule, **rest)


def first_ones(count: float, rule: StoppingRule, iterate: Iterate) -> Tensor:
    """So many of a batch go on; the rule is asked, as that costs time, and not obeyed."""
    return (iterate.rows < count) | (rule(iterate) & False)


def training(run: Run) -> dict[str, dict[str, float]]:
    """Seconds of a training step in the ``first`` epoch, and in the ``last``, where a curriculum is at its end.

    ``whole``: no sample stops, though the rule is asked, if there is one; ``half``: half the batch stops at once.
    """
    trainer, last = Trainer(run), run.training.epochs - 1
    images, attack = trainer.train_images, asdict(trainer.attack)
    index = torch.arange(min(run.training.batch_size, len(images)), device=images.pixels.device)
    epochs, limit = {"first": 0, "last": last}, trainer.defense.curriculum_value
    if limit(0) == limit(last):
        del epochs["first"]
    found: dict[str, dict[str, float]] = {}
    for name, trainer.epoch in epochs.items():
        paced = {part: Paced(**attack, share=share) for part, share in {"whole": 1.0, "half": 0.5}.items()}
        times = {}
        for part, trainer.attack in paced.items():
            times[part] = seconds(lambda: trainer.step(index.to(trainer.device), *images.batch(index)))
            if not paced["whole"].asked.ever:
                times["half"] = times["whole"]
                break
        found[name] = times
    return {"first": found["last"], **found}


def validation(run: Run, model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Seconds of an image that stands: its clean prediction, the whole attack, the prediction on what that found."""
    attack = validation_attack(run)

    def work() -> None:
        start = uniform_start(x, attack.epsilon)
        predict(model, x)
        predict(model, attack(model, x, cross_entropy(y), start=start, keep_going=lambda it: it.rows >= 0).x)

    return seconds(work) / len(x)


def judging(model: nn.Module, x: Tensor, classes: int) -> dict[str, list[tuple[int, float]]]:
    """Seconds of a block of images that stand until the end, for each attack of AutoAttack: of one, some, and all.

    Between, time is no straight line: on a processor few images take long for their number, on a GPU as long as many.
    Each attack is timed for a few of its iterations, and for one: the difference tells what the rest takes. Once that
    takes longer than SLOW, larger blocks are left out.
    """
    y = predict(model, x)
    adversary = pyautoattack.AutoAttack(model, eps=HARMLESS, seed=0, device=x.device)
    adversary.apgd.loss, adversary.fab.targeted = "ce", True
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = 1
    targets = min(9, classes - 1)
    found: dict[str, list[tuple[int, float]]] = {}
    for name, (part, length) in LENGTHS.items():
        times, few = targets if name.endswith("-t") else 1, 25 if name == "square" else 6
        attack = getattr(adversary, part)
        all_of_it, found[name] = getattr(attack, length), []
        for n in sorted({1, math.ceil(len(x) / 8), len(x)}):
            timed = []
            for iterations in (1, few):
                setattr(attack, length, iterations)
                timed.append(seconds(functools.partial(attack.perturb, x[:n], y[:n]), SECONDS / 8))
            rest = (all_of_it - 1) * max(0.0, timed[1] - timed[0]) / (few - 1)
            found[name].append((n, times * (timed[0] + rest)))
            if timed[1] > SLOW:
                break
        setattr(attack, length, all_of_it)
    return found


def curvature(model: nn.Module, x: Tensor, y: Tensor, config: Curvature) -> dict[str, float]:
    """Seconds an image of a product of the Hessian with a vector, and of the loss, at the batch size of curvature."""
    objective = Objective(model, x, y, len(x))
    (vector,) = gaussians(1, objective.theta, 0)
    in_one = config.images <= config.batch_size  # else every product makes the graph anew
    product = seconds(lambda: (objective if in_one else Objective(model, x, y, len(x))).product(vector))
    return {"product": product / len(x), "loss": seconds(lambda: objective(objective.theta)) / len(x)}
