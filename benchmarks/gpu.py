"""What a GPU does with this package, in under nine minutes: is it right, how fast, how much memory.

    python benchmarks/gpu.py

prints each table as soon as it is measured, and adds it to results/bench/gpu.json; what fails, and what a graph finds
otherwise than the loop, is named at the end, and the rest goes on. Checks come first: input gradients and attacks
against the processor's, CUDA graphs against the loop, a training against its repetition. Then images a second, and the
share of the floor (see docs/performance.md), of training steps in each precision, beside the loop that most codes write
and, where it is installed, torchattacks; then memory; then AutoAttack in strict float32 and in TF32, image by image.
Images are noise where only time counts, else scikit-learn's digits. What there is no time left for is left out and
named. ``--device cpu --small`` takes the same way without a GPU, on next to nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

if "cpu" in sys.argv:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks

import pandas as pd
import steps
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from sat_core import attacks, autoattack, models
from sat_core.attacks import PGD, cross_entropy, frozen
from sat_core.graphs import Graphs, Work, cuda_graph
from sat_core.hessian import Objective, lambda_max
from sat_core.runs.device import is_ampere
from sat_core.runs.files import atomic
from sat_core.runs.network import is_small
from sat_core.runs.trainer import Trainer
from sat_core.study import Study

MINUTES = 9.0
SAME = "the same to the bit"
LAST = 100
"""So many seconds before they are over nothing is begun any more."""


@dataclass(frozen=True)
class Case:
    """What is trained twice the same, and by graph against by loop."""

    defense: str = "madry"
    options: dict[str, Any] = field(default_factory=dict)
    model: str = "cnn"
    precision: str = "float32"


def paced(start: float, stop: float, **options: Any) -> dict[str, Any]:
    """A limit that stops some samples and not others, and is another one in each of three epochs."""
    return options | {"curriculum": {"kind": "linear", "epochs": [0, 3], "start": start, "stop": stop}}


CASES = {
    "madry": Case(),
    "trades": Case("trades", {"beta": 1}),
    "psat": Case("psat", paced(-0.3, 0.6)),
    "hsat": Case("hsat", paced(0.35, 0.8)),
    "hsat, gauss_newton": Case("hsat", paced(0.35, 0.8, metric="gauss_newton")),
    "fat, no noise": Case("fat", {"omega": 0}),
    "fat, noise, none stops": Case("fat", {"tau": 10}),  # else a graph draws for steps that the loop leaves out
    "psat, bfloat16": Case("psat", paced(-0.3, 0.6), precision="bfloat16"),
    "madry, batch norm": Case(model="preactresnet18"),
    "psat, batch norm": Case("psat", paced(-0.3, 0.6), model="preactresnet18"),
}


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    batch: int = 128
    rounds: int = 10
    epochs: int = 3
    trained: int = 8
    judged: int = 128
    cases: tuple[str, ...] = tuple(CASES)
    steps: tuple[tuple[str, int], ...] = (("cnn", 40), ("preactresnet18", 10))
    memory: tuple[str, ...] = ("cnn", "preactresnet18", "wrn-34-10")


SMALL = Size(
    batch=8,
    rounds=1,
    epochs=1,
    trained=2,
    judged=4,
    cases=("madry", "psat", "fat, noise, none stops"),
    steps=(("cnn", 3),),
    memory=("cnn",),
)


def again(work: Work) -> Work:
    """Where there is no GPU: work that is simply done again; not H-SAT's, which looks at what the first time saw."""
    work()
    return work


def capture_on(device: torch.device) -> Callable[[Work], Work]:
    """What makes of work what does it again."""
    return cuda_graph if device.type == "cuda" else again


def digits(case: Case, epochs: int, device: torch.device | None = None) -> Trainer:
    """A Trainer on scikit-learn's digits; to be called in a folder of its own."""
    training = {"epochs": max(epochs, 3), "milestones": [], "precision": case.precision}
    table = {"dataset": "digits", "models": [case.model], "defenses": [case.defense], "epsilons": [0.2], "seeds": [0]}
    overrides = [{"set": {"training": training, "attack": {"steps": 10}, "options": case.options}}]
    Path("digits.yaml").write_text(yaml.safe_dump({"tables": {"t": table}, "overrides": overrides}))
    return Trainer(next(iter(Study("digits.yaml").runs)), device)


def epochs(trainer: Trainer, count: int) -> dict[str, Tensor]:
    """The weights after so many epochs."""
    for _ in range(count):
        for _ in trainer.steps():
            pass
        trainer.finish_epoch()
    return {name: value.detach().cpu() for name, value in trainer.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> str:
    """Whether two networks are the same to the bit, and how far apart they are where not."""
    if all(torch.equal(one[name], other[name]) for name in one):
        return SAME
    return f"{max(float((one[name] - other[name]).abs().max()) for name in one):.1e} apart"


def against_the_processor(device: torch.device, size: Size) -> Iterator[dict[str, object]]:
    """The same weights, images and starts on both, in strict float32."""
    for name, _ in size.steps:
        torch.manual_seed(0)
        shape = steps.SHAPES[name]
        here = models.build(name, shape, 10, [0.5] * shape[0], [0.25] * shape[0]).eval()
        models.compute_in("float32", here)
        x, y = torch.rand(min(size.batch, 32), *shape), torch.randint(10, (min(size.batch, 32),))
        start, attack, found = (x + 0.02 * torch.randn_like(x)).clamp(0, 1), PGD(8 / 255, 2 / 255, 10), []
        for place in (torch.device("cpu"), device):
            model = here.to(place)
            leaf = x.to(place).requires_grad_()
            with frozen(model):
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y.to(place)), leaf)
            perturbed = attack(model, x.to(place), cross_entropy(y.to(place)), start=start.to(place)).x
            loss = F.cross_entropy(model(perturbed), y.to(place))
            found.append((gradient.cpu(), perturbed.cpu(), loss.item()))
        (g, a, loss), (h, b, other) = found
        yield {
            "network": name,
            "input gradient, relative error": float((g - h).norm() / g.norm()),
            "pixels that PGD-10 moved alike": float(((a - b).abs() < 1e-5).double().mean()),
            "loss at x'": loss,
            "on the device": other,
        }


def against_itself(device: torch.device, size: Size) -> Iterator[dict[str, object]]:
    """Trainings on digits: twice the same, and by graph against by loop, from which here nothing leaves either."""
    before = dict(attacks.PARTS)
    for name in size.cases:
        weights, attacks.PARTS[device.type] = [], 1
        for by_graph in (True, True, False):
            trainer = digits(CASES[name], size.epochs)
            graphs = Graphs(trainer.run.training.batch_size, capture=capture_on(device)) if by_graph else None
            trainer.attack = replace(trainer.attack, graphs=graphs)
            weights.append(epochs(trainer, size.epochs))
        yield {
            "training": name,
            "PGD steps a sample": trainer.history[-1]["steps"],
            "again": same(*weights[:2]),
            "graph and loop": same(*weights[1:]),
        }
    attacks.PARTS.clear()
    attacks.PARTS.update(before)


def one_epoch(device: torch.device, size: Size) -> Iterator[dict[str, object]]:
    """An epoch on digits on the processor and on the device, whose random numbers differ."""
    for place in (torch.device("cpu"), device):
        trainer = digits(CASES["madry"], 1, place)
        epochs(trainer, 1)
        row = trainer.history[0]
        yield {"device": place.type} | {name: row[name] for name in ("loss", "validation_clean", "validation_robust")}


def speed(device: torch.device, size: Size) -> Iterator[dict[str, object]]:
    """Training steps against their floor and against what others write, taking turns."""
    for model, pgd in size.steps:
        for precision in ("float32", "tf32", "bfloat16") if is_ampere(device) else ("float32",):
            yield from or_its_error(model, precision, speed_of(device, size, model, pgd, precision))


def or_its_error(network: str, part: str, rows: Iterator[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Rows or, in the place of one that fails, its error: what the others find is worth having, too."""
    try:
        yield from rows
    except Exception as error:
        traceback.print_exc()
        yield {"network": network, "failed": part, "error": repr(error)}


def speed_of(device: torch.device, size: Size, model: str, pgd: int, precision: str) -> Iterator[dict[str, object]]:
    """The rows of one network in one precision."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        trainers = steps.make_trainers(Path(name), model, precision, size.batch, pgd)
        ours = trainers["madry"]
        index, x, y = next(ours.train_images.batches(torch.arange(size.batch), size.batch))
        plain = steps.plain(ours.model)
        actions: dict[str, Callable[[], object]] = {
            defense: partial(trainers[defense].step, index, x, y) for defense in ("madry", "trades", "psat", "hsat")
        }
        others = steps.make_trainers(Path(name), model, precision, size.batch, pgd)
        others["madry"].attack = replace(others["madry"].attack, graphs=None)
        actions["madry, no graph"] = partial(others["madry"].step, index, x, y)
        nchw = steps.make_trainers(Path(name), model, precision, size.batch, pgd)["madry"]
        nchw.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        actions["madry, NCHW"] = partial(nchw.step, index, x, y)  # whether ours is the better layout in each
        if device.type == "cuda" and not is_small(ours.model):  # whether that limit is where it should be
            graphs = Graphs(size.batch, stopping=True)
            others["psat"].attack = replace(others["psat"].attack, graphs=graphs)
            actions["psat, by graph"] = partial(others["psat"].step, index, x, y)
        if precision != "bfloat16":  # others' code does not ask for it
            peers = [p for p in steps.PEERS[:2] if p != "torchattacks" or importlib.util.find_spec("torchattacks")]
            for peer in peers:
                actions[peer] = loosely(steps.peer_step(plain, steps.peer_attack(peer, plain, pgd), x, y))
        parts = steps.floor_parts(ours.model, x, y, pgd, capture_on(device))
        times = pd.DataFrame(steps.measure(parts | actions, size.rounds))
    for title in actions:
        floor = steps.floor_of(title if title in steps.DEFENSES else "madry", times)
        yield {
            "network": f"{model}, PGD-{pgd}",
            "precision": precision,
            "step": title,
            "images/s": size.batch / times[title].median(),
            "ms": 1e3 * times[title].median(),
            "x floor": (times[title] / floor).median(),
        }


def loosely(step: Callable[[], object]) -> Callable[[], None]:
    """The same with whatever kernels cuDNN likes, as others call it, and not its deterministic ones."""

    def action() -> None:
        torch.backends.cudnn.deterministic = False
        step()
        torch.backends.cudnn.deterministic = True

    return action


def memory(device: torch.device, size: Size) -> Iterator[dict[str, object]]:
    """Peak memory in tensors of one training step, and of the curvature of 100 images; on the processor not known."""
    for name in size.memory:
        yield from or_its_error(name, "memory", memory_of(device, size, name))


def memory_of(device: torch.device, size: Size, name: str) -> Iterator[dict[str, object]]:
    """The row of one network."""
    shape = steps.SHAPES.get(name, (3, 32, 32))
    row: dict[str, object] = {"network": name, "batch": size.batch}
    for what in ("float32 step", "bfloat16 step", "curvature"):
        gc.collect()  # a learning rate's schedule holds its optimiser's tensors in a circle
        torch.manual_seed(0)
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        model = models.build(name, shape, 10, [0.5] * shape[0], [0.25] * shape[0]).to(device)
        models.compute_in("bfloat16" if what.startswith("bf") else "float32", model)
        x, y = torch.rand(size.batch, *shape, device=device), torch.randint(10, (size.batch,), device=device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if what == "curvature":
            lambda_max(Objective(model.eval(), x[:100], y[:100]), steps=40 if device.type == "cuda" else 3, tolerance=0)
        else:
            attack = PGD(8 / 255, 2 / 255, 2)
            found = attack(model.train(), x, cross_entropy(y), start=x).x
            F.cross_entropy(model(found), y).backward()
            torch.optim.SGD(model.parameters(), 0.1, 0.9, fused=True).step()
        row[f"{what}, GB"] = (torch.cuda.max_memory_allocated() - before) / 1e9 if device.type == "cuda" else None
        del model
    yield row


def verdicts(device: torch.device, size: Size) -> Iterator[dict[str, object]]:
    """AutoAttack on networks trained on digits, in strict float32 and in TF32: seconds, and images judged otherwise."""
    for name in ("cnn", "preactresnet18")[: len(size.steps)]:
        trainer = digits(Case(model=name), size.trained)
        epochs(trainer, size.trained)
        x, y = trainer.validation_images.batch(slice(0, size.judged))
        found = []
        for precision in ("float32", "tf32"):
            models.compute_in(precision, trainer.model.eval())
            began = time.perf_counter()
            found.append((autoattack(trainer.model, x, y, epsilon=0.2), time.perf_counter() - began))
        (strict, slow), (loose, fast) = found
        yield {
            "network": name,
            "images": len(y),
            "robust, float32": strict.robust,
            "robust, tf32": loose.robust,
            "images whose verdict differs": sum(
                (a == "") != (b == "") for a, b in zip(strict.broken_by, loose.broken_by, strict=True)
            ),
            "seconds, float32": slow,
            "seconds, tf32": fast,
        }


PARTS = (against_the_processor, against_itself, one_epoch, speed, memory, verdicts)


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="a minute on a processor, for the numbers of no use")
    parser.add_argument("--out", type=Path, default=Path("results/bench/gpu.json"))
    given = parser.parse_args()
    began, out, size = time.monotonic(), given.out.resolve(), SMALL if given.small else Size()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: torch sees no GPU; --device cpu --small takes the same way without one")
    device = torch.device(given.device)
    content: dict[str, Any] = {"hardware": steps.hardware(), "size": asdict(size)}
    print(content["hardware"], flush=True)
    until, failed = began + 60 * MINUTES - LAST, []
    for part in PARTS:
        rows: list[dict[str, object]] = []
        with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
            found = or_its_error("", part.__name__, part(device, size))
            while time.monotonic() < until and (row := next(found, None)):
                rows.append(row)
        if any("error" in row or str(row.get("graph and loop", SAME)) != SAME for row in rows):
            failed.append(part.__name__)
        if time.monotonic() > until:
            print(f"{part.__name__}: cut short after {len(rows)} rows, {MINUTES:g} minutes are nearly over")
        content |= {part.__name__: rows, "seconds": time.monotonic() - began}
        with atomic(out) as file:
            json.dump(content, file, indent=1)
        print(f"\n{part.__doc__}\n\n{pd.DataFrame(rows).to_markdown(index=False, floatfmt='.4g')}", flush=True)
    print(f"\nwritten: {out}, after {content['seconds']:.0f} s")
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
