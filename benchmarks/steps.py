"""Training steps against their floors and against other people's loops: `make bench`.

Everything that is compared runs in turn, round after round; the ratios are medians over the rounds of the ratio within
a round, which a machine that slows down for a while does not change. Images are noise (a step of these defenses costs
the same on any images while none stops), read through the image-folder dataset; the peers get the same network, batch,
steps and labels, and a process each, as their users run them: what ours sets in its process is not theirs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import multiprocessing
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor, nn

from sat_core.attacks import frozen
from sat_core.graphs import Work
from sat_core.models.cnn import FoldingConv2d
from sat_core.runs.trainer import Trainer
from sat_core.study import Study

SHAPES = {"cnn": (1, 28, 28), "preactresnet18": (3, 32, 32)}
EPSILON = 0.1
NEVER = {"curriculum": {"kind": "steps", "epochs": [0], "stop": 0.999999}}
"""The rule is asked, which at 1 it is not, and stops nothing."""
OPTIONS = {"psat": NEVER, "hsat": NEVER, "trades": {"beta": 1}, "dynamic": {"horizon": 1}}
DEFENSES = ("madry", "trades", "dynamic", "cat", "psat", "hsat")
PEERS = ("torchattacks", "plain loop", "plain loop, weights too")


def make_trainers(folder: Path, model: str, precision: str, batch: int, steps: int) -> dict[str, Trainer]:
    """One trainer a defense, at its first epoch with a limit at which nothing stops, on noise written to ``folder``."""
    channels, height, width = SHAPES[model]
    noise = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(10):
            place = folder / "images" / part / str(label)
            place.mkdir(parents=True, exist_ok=True)
            for i in range(max(10, -(-batch // 9) + 1)):  # a tenth of them is for validation
                pixels = noise.integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()
                Image.fromarray(pixels).save(place / f"{i}.png")
    data = {"source": "folder", "root": str(folder / "images"), "image": [channels, height, width], "classes": 10}
    data |= {"mean": [0.5] * channels, "std": [0.25] * channels}
    (folder / "datasets").mkdir(exist_ok=True)
    protocol = {"data": data, "training": {"epochs": 2, "batch_size": batch, "lr": 0.001, "precision": precision}}
    protocol |= {"attack": {"steps": steps}, "resources": {"threads": torch.get_num_threads()}}
    protocol["overrides"] = [{"where": {"defense": name}, "set": {"options": o}} for name, o in OPTIONS.items()]
    (folder / "datasets" / "noise.yaml").write_text(yaml.safe_dump(protocol))
    table = {"dataset": "noise", "models": [model], "defenses": list(DEFENSES), "epsilons": [EPSILON]}
    (folder / "bench.yaml").write_text(yaml.safe_dump({"tables": {"noise": table}}))
    study = Study(folder / "bench.yaml")
    found = {}
    for name in DEFENSES:
        found[name] = Trainer(study.run(f"noise/{model}/{name}/eps{EPSILON}/seed0"))
        found[name].epoch = 1 if name == "dynamic" else 0  # its limit is 0 from its horizon on
    return found


def plain(model: nn.Module) -> nn.Module:
    """The same network as others write it: float32, NCHW, nn.Conv2d."""
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    model.in_bfloat16 = False
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FoldingConv2d):
                same = nn.Conv2d(child.in_channels, child.out_channels, child.kernel_size, child.stride, child.padding)
                same.load_state_dict(child.state_dict())
                setattr(parent, name, same.to(child.weight.device))
    return model


def peer_step(model: nn.Module, attack: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[], None]:
    """An ordinary training step around somebody's attack."""
    optimizer = torch.optim.SGD(model.parameters(), 0.001, 0.9, weight_decay=5e-4)

    def step() -> None:
        x_adversarial = attack(x, y)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x_adversarial), y).backward()
        optimizer.step()

    return step


def plain_attack(model: nn.Module, steps: int, through_weights: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """PGD as most adversarial-training codes write it, without or with the gradients of the weights."""
    size = EPSILON / 4

    def attack(x: Tensor, y: Tensor) -> Tensor:
        model.eval()
        current = torch.clamp(x + torch.empty_like(x).uniform_(-EPSILON, EPSILON), 0, 1)
        for _ in range(steps):
            current = current.detach().requires_grad_()
            loss = F.cross_entropy(model(current), y)
            if through_weights:
                loss.backward()
                gradient = current.grad
            else:
                gradient = torch.autograd.grad(loss, current)[0]
            current = current.detach() + size * gradient.sign()
            current = torch.clamp(torch.min(torch.max(current, x - EPSILON), x + EPSILON), 0, 1)
        return current.detach()

    return attack


def peer_attack(title: str, model: nn.Module, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The attack of one of PEERS."""
    if title == "torchattacks":
        import torchattacks

        return torchattacks.PGD(model, eps=EPSILON, alpha=EPSILON / 4, steps=steps)
    return plain_attack(model, steps, through_weights="weights too" in title)


def peer(title: str, model: nn.Module, x: Tensor, y: Tensor, steps: int, threads: int) -> Callable[[], None]:
    """The training step of one of PEERS, in the process that it is called in."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    return peer_step(model, peer_attack(title, model, steps), x.to(device), y.to(device))


def serve(pipe: Connection, make: Callable[..., Callable[[], object]], given: tuple) -> None:
    """The life of a process: make a step, then take it whenever asked to and say when it is done."""
    step = make(*given)
    while pipe.recv():
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        pipe.send(True)


@contextlib.contextmanager
def processes(makers: dict[str, tuple[Callable[..., Callable], tuple]]) -> Iterator[dict[str, Callable[[], object]]]:
    """For each title, (what makes a step, its arguments), a function that has a process of its own take the step."""
    spawn = multiprocessing.get_context("spawn")
    pipes = {}
    for title, (make, given) in makers.items():
        pipes[title], there = spawn.Pipe()
        spawn.Process(target=serve, args=(there, make, given), daemon=True).start()
    yield {title: lambda pipe=pipe: (pipe.send(True), pipe.recv()) for title, pipe in pipes.items()}
    for pipe in pipes.values():
        pipe.send(False)


def floor_parts(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, capture: Callable[[Work], Work] = lambda work: work
) -> dict[str, Callable[[], object]]:
    """What no step can do without: input gradients, a forward pass, a forward and backward pass.

    ``capture``: makes of the input gradient what does it again, where a GPU has ways to launch it faster.
    """

    def input_gradient() -> None:
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)

    with frozen(model):
        once = capture(input_gradient)

    def input_gradients() -> None:
        with frozen(model):
            for _ in range(steps):
                once()

    def forward() -> None:
        with torch.no_grad(), frozen(model):
            model(x)

    def forward_backward() -> None:
        model.train()
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    return {"input gradients": input_gradients, "forward": forward, "forward-backward": forward_backward}


def floor_of(defense: str, part: pd.DataFrame) -> pd.Series:
    """The floor of a defense's step in each round, in seconds, from the parts measured in that round."""
    base = part["input gradients"] + part["forward-backward"]
    if defense == "trades":  # the clean prediction to move away from, and a second image in the outer loss
        return base + part["forward"] + part["forward-backward"]
    return base + part["forward"] if defense == "cat" else base  # CAT asks whether x' fooled the network


def measure(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each action in each round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - began)
    return times


def compare(model: str, precision: str, batch: int, steps: int, rounds: int, only: list[str]) -> pd.DataFrame:
    """The table for one network: seconds, ratio to the own floor and to our Madry step."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        trainers = make_trainers(Path(name), model, precision, batch, steps)
        ours = trainers["madry"]
        index, x, y = next(ours.train_images.batches(torch.arange(len(ours.train_images)), batch))
        actions = {name: lambda t=trainer: t.step(index, x, y) for name, trainer in trainers.items()}
        actions = {name: action for name, action in actions.items() if not only or name in only}
        parts = floor_parts(copy.deepcopy(ours.model), x, y, steps)
        titles = [title for title in PEERS if not only or title in only]
        network, threads = plain(ours.model).cpu(), torch.get_num_threads()
        makers = {title: (peer, (title, network, x.cpu(), y.cpu(), steps, threads)) for title in titles}
        with processes(makers) as others:
            times = measure(parts | actions | others, rounds)
    per_round = pd.DataFrame(times)
    rows = []
    for title in [*actions, *titles]:
        mine = title in DEFENSES
        floor = floor_of(title, per_round) if mine else None
        rows.append(
            {
                "model": model,
                "precision": precision if mine else "float32",
                "batch": batch,
                "PGD steps": steps,
                "step": title,
                "min s": per_round[title].min(),
                "median s": per_round[title].median(),
                "x floor": (per_round[title] / floor).median() if mine else None,
                "x our madry": (per_round[title] / per_round["madry"]).median(),
            }
        )
    return pd.DataFrame(rows)


def peak_memory(model: str, precision: str, batch: int) -> pd.DataFrame:
    """Peak resident memory of a P-SAT step and of the plain loop's, each in a process of its own."""
    rows = []
    for title in ("psat", "plain loop"):
        command = [sys.executable, __file__, "--one", title, "--models", model, "--precision", precision]
        found = subprocess.run([*command, "--batch", str(batch)], check=True, capture_output=True, text=True)
        rows.append({"model": model, "batch": batch, "step": title, "peak MiB": float(found.stdout.split()[-1])})
    return pd.DataFrame(rows)


def one(title: str, model: str, precision: str, batch: int) -> float:
    """Take one step in this process; peak memory in MiB."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        trainer = make_trainers(Path(name), model, precision, batch, 2)["psat"]
        index, x, y = next(trainer.train_images.batches(torch.arange(len(trainer.train_images)), batch))
        if title == "psat":
            trainer.step(index, x, y)
        else:
            network = plain(trainer.model)
            peer_step(network, peer_attack(title, network, 2), x, y)()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's peak, if that is larger
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 2**10


def hardware() -> str:
    """What the numbers hold for."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
        name = f"{cpu}, {torch.get_num_threads()} threads"
    try:
        peers = f"torchattacks {metadata.version('torchattacks')}"
    except metadata.PackageNotFoundError:
        peers = "no torchattacks"
    return f"{name}; torch {torch.__version__}, {peers}, Python {platform.python_version()}"


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cnn", "preactresnet18"], choices=SHAPES)
    parser.add_argument("--precision", nargs="+", default=["bfloat16"], choices=["float32", "bfloat16", "tf32"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[], help="these steps alone, `madry` among them")
    parser.add_argument("--out", type=Path, default=Path("results/bench/steps.csv"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(one(given.one, given.models[0], given.precision[0], given.batch))
        return
    if not importlib.util.find_spec("torchattacks"):
        sys.exit("error: torchattacks is not installed: `make bench`, or see docs/performance.md for the command")
    out = given.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    print(hardware(), flush=True)
    tables = []
    for model in given.models:
        for precision in given.precision:
            tables.append(compare(model, precision, given.batch, given.steps, given.rounds, given.only))
            print(tables[-1].to_markdown(index=False, floatfmt=".3f"), flush=True)
    pd.concat(tables).assign(hardware=hardware()).to_csv(out, index=False)
    memory = pd.concat([peak_memory(model, given.precision[0], given.batch) for model in given.models])
    print(memory.to_markdown(index=False, floatfmt=".0f"), flush=True)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
