"""Our judge against plain pyautoattack, image by image and in time, on three networks at three robust accuracies.

Each network is trained for a minute or a few, and judged on test images that it classifies correctly, at the epsilons
where APGD-CE leaves 20, 50 and 80 % of them. Plain is what a fresh user types: the network as torch lays it
out, its parameters wanting gradients; only the seed is ours, as pyautoattack would take the clock's. ``already broken``
counts what the gradient attacks spend on images that they have broken, in input gradients and forward passes: all that
could be saved if such images left the batch.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import pyautoattack
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from sat_core import PGD, autoattack, cross_entropy, models, uniform_start
from sat_core.errors import ConfigError
from sat_core.runs.data import load
from sat_core.runs.device import best_precision
from sat_core.runs.images import Images
from sat_core.study import Study

CASES = {  # network: images, epsilon and steps of PGD, optimiser steps, batch, images to judge
    "cnn": ("digits", 0.2, 10, 600, 64, 250),
    "smallcnn": ("mnist", 0.2, 7, 500, 64, 50),
    "preactresnet18": ("cifar10-images", 2 / 255, 1, 120, 32, 6),
}
GRADIENT = 2.5
"""An input gradient costs about as much as so many forward passes."""


class Counting(nn.Module):
    """A network that counts its passes, in all and on images that one run of an attack has broken before."""

    def __init__(self, model: nn.Module, epsilon: float) -> None:
        super().__init__()
        self.model, self.epsilon = model, epsilon
        self.passes = self.wasted = 0.0

    def begin(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.broken = x, y, torch.zeros_like(y, dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        logits, cost = self.model(x), GRADIENT if x.requires_grad else 1
        self.passes += cost * len(x)
        if len(x) == len(self.broken):
            self.wasted += cost * int(self.broken.sum())
            inside = (x.detach() - self.x).abs().flatten(1).amax(dim=1) <= self.epsilon * (1 + 1e-6)
            self.broken |= (logits.argmax(dim=1) != self.y) & inside
        return logits


def already_broken(model: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> tuple[float, float]:
    """Passes that AutoAttack's gradient attacks make on images that they have broken, and all of theirs."""
    counting = Counting(model, epsilon)
    counting.begin(x[:0], y[:0])
    adversary = pyautoattack.AutoAttack(counting, eps=epsilon, norm="Linf", seed=0)
    adversary.attacks_to_run.remove("square")
    for attack in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        attack.attack_single_run = watched(attack.attack_single_run, counting)
    _, answers = adversary.run_standard_evaluation(x, y, batch_size=250)
    square = 5000 * int((answers == y).sum())
    return counting.wasted, counting.passes + square


def watched(run: Any, counting: Counting) -> Any:
    """An attack's single run that tells ``counting`` when it begins and ends."""

    def attack(x: Tensor, y: Tensor, **options: Any) -> Any:
        counting.begin(x, y)
        found = run(x, y, **options)
        counting.begin(x[:0], y[:0])
        return found

    return attack


def train(case: str, network: dict[str, Any], images: Images) -> nn.Module:
    """The network after a little adversarial training, frozen."""
    _, epsilon, steps, count, batch, _ = CASES[case]
    model = models.build(case, **network)
    reduced = case != "cnn" and best_precision(torch.device("cpu")) == "bfloat16"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 if steps > 1 else 0.03, momentum=0.9)
    for step in range(count):
        x, y = images.batch(torch.randint(len(images), (batch,)))
        radius = max(0.001, epsilon * min(1, 2 * step / count))
        attack = PGD(radius, radius / min(steps, 4), steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            x = attack(model, x, cross_entropy(y), start=uniform_start(x, radius)).x
            loss = F.cross_entropy(model.train()(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def epsilon_for(model: nn.Module, x: Tensor, y: Tensor, accuracy: float) -> float:
    """Where AutoAttack's first attack leaves that share of the images, to within a fiftieth of itself."""
    low, high = 0.0, 1.0
    while high - low > 0.02 * high:
        epsilon = (low + high) / 2
        adversary = pyautoattack.AutoAttack(model, eps=epsilon, norm="Linf", seed=0)
        adversary.attacks_to_run = ["apgd-ce"]
        _, answers = adversary.run_standard_evaluation(x, y, batch_size=250)
        low, high = (epsilon, high) if (answers == y).float().mean() > accuracy else (low, epsilon)
    return high


def compare(case: str, model: nn.Module, x: Tensor, y: Tensor, accuracy: float, rounds: int) -> dict[str, Any]:
    """A row of the table."""
    epsilon = epsilon_for(model, x, y, accuracy)
    fresh = copy.deepcopy(model).to(memory_format=torch.contiguous_format).requires_grad_(True)
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(rounds):
        began = time.perf_counter()
        adversary = pyautoattack.AutoAttack(fresh, norm="Linf", eps=epsilon, version="standard", seed=0)
        _, answers = adversary.run_standard_evaluation(x, y, batch_size=250)
        seconds["plain"].append(time.perf_counter() - began)
        began = time.perf_counter()
        verdict = autoattack(model, x, y, epsilon=epsilon, seed=0, batch_size=250)
        seconds["ours"].append(time.perf_counter() - began)
    robust = torch.tensor([not by for by in verdict.broken_by])
    ratios = [ours / plain for ours, plain in zip(seconds["ours"], seconds["plain"], strict=True)]
    wasted, passes = already_broken(model, x, y, epsilon)
    return {
        "network": case,
        "images": len(x),
        "epsilon": epsilon,
        "robust %": 100 * verdict.robust,
        "plain s": median(seconds["plain"]),
        "ours s": median(seconds["ours"]),
        "ours / plain": median(ratios),
        "same verdicts": f"{int((robust == (answers == y)).sum())} of {len(x)}",
        "already broken %": 100 * wasted / passes,
    }


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--root", type=Path, default=Path("data"), help="the folder of MNIST/ and of cifar10-images/")
    parser.add_argument("--accuracies", nargs="+", type=float, default=[0.2, 0.5, 0.8])
    parser.add_argument("--images", type=int, help="judge so many, not as many as the network allows in minutes")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/bench/judging.csv"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    out, rows = given.out.resolve(), []
    out.parent.mkdir(parents=True, exist_ok=True)
    for case in given.networks:
        network, train_images, test_images = images_of(case, given.root.resolve())
        torch.manual_seed(0)
        model = train(case, network, train_images)
        x, y = test_images.batch(slice(2000))
        right = (model(x).argmax(dim=1) == y).nonzero().squeeze(1)[: given.images or CASES[case][-1]]
        for accuracy in given.accuracies:
            rows.append(compare(case, model, x[right], y[right], accuracy, given.rounds))
            print(rows[-1], flush=True)
            pd.DataFrame(rows).to_csv(out, index=False)
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3g"))
    print(f"written: {out}")


def images_of(case: str, root: Path) -> tuple[dict[str, Any], Images, Images]:
    """What a network must know of its images, those for training, and those for the test."""
    dataset = CASES[case][0]
    data = {} if dataset == "digits" else {"root": str(root / dataset if dataset == "cifar10-images" else root)}
    table = {"dataset": dataset, "models": [case], "defenses": ["madry"], "epsilons": [0.1]}
    content = {"tables": {"t": table}, "overrides": [{"set": {"data": data}}] if data else []}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("study.yaml").write_text(yaml.safe_dump(content))
        study = Study("study.yaml")
        run = study.run(next(iter(study.run_ids)))
        train_images, test_images = load(run, "train", "test")
        return run.data.network, copy.deepcopy(train_images), copy.deepcopy(test_images)


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
