"""Designs of H-SAT's difficulty, trained one by one: the table of docs/hsat.md.

A design's name is made of its parts: SCALE[-gauss-newton][-folded][-clean][-last|-best]-CURRICULUM. With linear0-75
lambda is 0 in the first epoch and rises linearly, to 1 after 75 % of them; with steps0.5 it rises from 0.5 in the three
jumps of P-SAT's curriculum. madry, psat and hsat are the package's, with the dataset's curriculum. hsat is
start-mean-linear0-75, but `Curriculum` counts as the authors' code does, so that its lambda is an epoch ahead.
"""

import argparse
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import yaml
from torch import Tensor

from sat_core.attacks import Iterate, Perturbation, cross_entropy, uniform_start
from sat_core.defenses import Batch, SelfPaced
from sat_core.difficulty import capture, classifier_gain, gauss_newton_gain, parametric_layers, top_softmax_eigenvalue
from sat_core.errors import ConfigError
from sat_core.runs.trainer import Trainer
from sat_core.study import Study

SCALES = "start-mean|batch-mean|batch-max|running-max|sample|rank|quantile"
NAME = re.compile(rf"({SCALES})(-gauss-newton)?(-folded)?(-clean)?(-last|-best)?-(linear|steps)([\d.]+)(?:-(\d+))?")
PACKAGED, CHOSEN = ("madry", "psat", "hsat"), "start-mean-linear0-75"
MODELS = {"digits": "cnn", "mnist-10k": "convsmall"}


class Design(SelfPaced):
    """H-SAT with its choices left open.

    ``scale``, what the curvature is divided by: half of k's mean where the attack starts; half of k's mean or maximum
    over the samples that still move; half of its largest yet; half of the ``sample``'s own k; or the 99th percentile
    (``quantile``) of all that training met, half old, half new. ``rank``: u is the share of the batch's curvatures,
    each sample's latest, that are no larger. ``keep``: a sample that stops keeps the iterate found above lambda, or the
    ``last`` that was not; or PGD goes on, and the ``best`` of all iterates not above lambda, of highest loss, stays.
    """

    scale: str
    metric: Literal["classifier", "gauss-newton"] = "classifier"
    folded: bool = False
    start: Literal["uniform", "clean"] = "uniform"
    keep: Literal["above", "last", "best"] = "above"

    def perturb(self, batch: Batch) -> Perturbation:
        x, attack, limit = batch.x, batch.attack, self.curriculum(batch.epoch)
        start = x if self.start == "clean" else uniform_start(x, attack.epsilon)
        if limit >= 1:
            return attack(batch.model, x, cross_entropy(batch.y), start=start)
        whole, on, layers = self.metric != "classifier", self.keep == "best", parametric_layers(batch.model)
        kept, steps, loss = start.clone(), torch.zeros_like(batch.y), x.new_full((len(x),), -float("inf"))
        going = torch.ones_like(batch.y, dtype=torch.bool)
        with capture(*(layers if whole else layers[-1:]), deltas=whole) as seen:

            def keep_going(iterate: Iterate) -> Tensor:
                rows, y, step = iterate.rows, batch.y[iterate.rows], iterate.step
                if whole:
                    iterate.gradient  # noqa: B018  (its backward pass is what fills seen.deltas)
                    gain = gauss_newton_gain(iterate.logits, y, seen.gradient_norm_squared())
                else:
                    gain = classifier_gain(seen.inputs[layers[-1]])
                u = self.scaled(top_softmax_eigenvalue(iterate.logits) * gain, gain, iterate, batch.state).clamp(max=1)
                right = iterate.logits.argmax(dim=1) == y
                allowed = (u if self.folded else torch.where(right, u / 2, 1 - u / 2)) <= limit
                going[rows] &= allowed | on
                take = allowed & (iterate.loss > loss[rows]) if on else going[rows]
                kept[rows[take]], loss[rows[take]], steps[rows[take]] = iterate.x[take], iterate.loss[take], step
                return going[rows] & (step < attack.steps)

            asked = replace(attack, steps=attack.steps + on)  # so that the end point is asked about too
            found = asked(batch.model, x, cross_entropy(batch.y), start=start, keep_going=keep_going)
        new = quantile(batch.state["met"])
        batch.state["quantile"] = (batch.state.get("quantile", new) + new) / 2
        back = torch.zeros_like(going) if self.keep == "above" else ~going | on
        return Perturbation(torch.where(back[:, None, None, None], kept, found.x), steps.where(back, found.steps))

    def scaled(self, raw: Tensor, gain: Tensor, iterate: Iterate, state: dict[str, Tensor]) -> Tensor:
        """u of the samples still moving, before it is clipped at 1."""
        first, unit = iterate.step == 0, (gain.max() if self.scale.endswith("max") else gain.mean()) / 2
        state["met"] = raw if first else torch.cat([state["met"], raw])
        state["latest"] = raw if first else state["latest"].index_copy(0, iterate.rows, raw)
        if first or self.scale != "start-mean":
            state["unit"] = torch.maximum(state["unit"], unit) if self.scale == "running-max" and not first else unit
        if self.scale == "rank":
            return (raw[:, None] >= state["latest"]).float().mean(dim=1)
        if self.scale == "quantile":
            return raw / state.get("quantile", quantile(raw))
        return raw / (gain / 2 if self.scale == "sample" else state["unit"])


def quantile(raw: Tensor) -> Tensor:
    """The 99th percentile, above 0."""
    return raw.quantile(0.99).clamp_min(1e-12)


def fields_of(name: str, epochs: int) -> dict[str, Any]:
    """The fields of the design of that name in a training of so many epochs."""
    if not (found := NAME.fullmatch(name)):
        raise ConfigError(f"no design is called '{name}': see --help; SCALE is {SCALES}")
    scale, metric, folded, start, keep, kind, low, end = found.groups()
    shares, late = ((13 / 30, 19 / 30, 26 / 30), 0) if kind == "steps" else ((0, int(end or 87) / 100), 1)
    words = {key: word[1:] for key, word in (("metric", metric), ("start", start), ("keep", keep)) if word}
    curriculum = {"kind": kind, "epochs": [round(share * epochs) + late for share in shares], "start": float(low)}
    return {"scale": scale, "folded": bool(folded), "curriculum": curriculum} | words


def make_trainer(name: str, epsilon: str, seed: int, given: argparse.Namespace) -> Trainer:
    """A trainer under the dataset's protocol, with the design of that name for a defense."""
    table = {"dataset": given.dataset, "models": [given.model or MODELS[given.dataset]], "epsilons": [epsilon]}
    table |= {"defenses": [name if name in PACKAGED else "madry"], "seeds": [seed]}
    settings = [given.set, {"resources": {"threads": given.threads, "gpus": 0}}]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "designs.yaml")
        path.write_text(yaml.safe_dump({"tables": {"t": table}, "overrides": [{"set": s} for s in settings]}))
        trainer = Trainer(Study(path).runs[0])
    if name not in PACKAGED:
        trainer.defense = Design(**fields_of(name, trainer.run.training.epochs))
    return trainer


def trained(name: str, epsilon: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Accuracies (%) on the validation images after the best epoch and the last; by epoch, steps and share stopped."""
    trainer = make_trainer(name, epsilon, seed, given)
    while trainer.epoch < trainer.run.training.epochs:
        for _ in trainer.steps():
            pass
        trainer.finish_epoch()
    best, last = trainer.history[trainer.best["epoch"]], trainer.history[-1]
    row = {"design": name, "dataset": given.dataset, "model": trainer.run.model, "epsilon": epsilon, "seed": seed}
    for prefix, epoch in (("", best), ("last_", last)):
        row |= {f"{prefix}{key}": round(100 * epoch[f"validation_{key}"], 2) for key in ("clean", "robust")}
    row["constant"] = not trainer.score(last["validation_clean"], last["validation_robust"])[0]
    return row | {key: " ".join(f"{epoch[key]:.2f}" for epoch in trainer.history) for key in ("steps", "stopped")}


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--designs", nargs="+", default=[CHOSEN, "psat", "madry"], metavar="NAME", help=f"{SCALES}-...")
    parser.add_argument("--dataset", choices=MODELS, default="digits")
    parser.add_argument("--epsilon", nargs="+", default=["0.3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", help=f"if not that of {MODELS}")
    parser.add_argument("--set", type=yaml.safe_load, default={}, help="further settings, as YAML")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/bench/hsat_designs.csv"))
    given, rows = parser.parse_args(), []
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for run in [(name, epsilon, seed) for seed in given.seeds for epsilon in given.epsilon for name in given.designs]:
        rows.append(trained(*run, given))
        print(*(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        pd.DataFrame(rows).to_csv(given.out, index=False)


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
