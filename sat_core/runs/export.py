"""A judged run in the form in which RobustBench takes networks: weights, facts, verdict, and the text of an issue."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_core.errors import ConfigError, unknown
from sat_core.judge import ATTACKS
from sat_core.models._robustbench import OURS, their_name
from sat_core.runs import folder
from sat_core.runs.files import atomic
from sat_core.runs.network import trained_model
from sat_core.study import Run

log = logging.getLogger(__name__)

ARCHITECTURES = {"preactresnet18": "PreActResNet-18", "wrn-34-10": "WideResNet-34-10"}
"""As RobustBench writes them."""
PARTS = {
    "preactresnet18": ("resnet", "PreActResNet, PreActBlockV2", "PreActBlockV2, [2, 2, 2, 2], bn_before_fc=True"),
    "wrn-34-10": ("wide_resnet", "WideResNet", "depth=34, widen_factor=10"),
}
"""Its module, what is imported from there, and what its class is made with."""
IMAGES = 10_000
"""What its leaderboard judges on."""


def export(run: Run, out: Path) -> list[Path]:
    """Write model.pt, model_info.json, load.py, autoattack.log, autoattack.csv and issue.md into ``out``.

    Raises ConfigError unless the run was trained here, is judged, and has a network that RobustBench has, too.
    """
    if run.external is not None:
        raise ConfigError(f"{run.id.path} was not trained here: whoever did that exports it")
    if run.model not in OURS:
        raise ConfigError(f"RobustBench has no such network: {unknown('model', run.model, OURS)}")
    folder.trained_record(run)
    if (verdict := folder.measured(run, "evaluate")) is None:
        raise ConfigError(f"{run.folder / folder.IMAGES} is missing: `evaluate` the run first")
    if reasons := folder.why_other(run, "evaluate"):
        raise ConfigError(
            f"{run.folder / folder.IMAGES} is stale ({'; '.join(reasons)}): `evaluate` the run again first"
        )
    if out.resolve() == run.folder.resolve():
        raise ConfigError(f"{out} is the run's own folder: name another")
    facts = model_info(run, verdict)
    texts = {
        "model_info.json": json.dumps(facts, indent=2) + "\n",
        "load.py": loader(run),
        "autoattack.log": autoattack_log(verdict),
        "issue.md": issue(run, facts, verdict),
    }
    with atomic(out / "model.pt", "wb") as file:
        torch.save(state_dict(run), file)
    for name, text in texts.items():
        with atomic(out / name) as file:
            file.write(text)
    with atomic(out / folder.IMAGES, "wb") as file:
        file.write((run.folder / folder.IMAGES).read_bytes())
    for doubt in reservations(run, verdict):
        log.warning("%s", doubt)
    return [out / name for name in ("model.pt", *texts, folder.IMAGES)]


def state_dict(run: Run) -> dict[str, Tensor]:
    """The selected weights under the names of RobustBench's class, with ``mu`` and ``sigma``, (1, C, 1, 1)."""
    model, _ = trained_model(run, torch.device("cpu"))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state |= {name: state[name][None] for name in ("mean", "std")}
    return {their_name(run.model, name): tensor for name, tensor in state.items()}


def model_info(run: Run, verdict: dict[str, Any]) -> dict[str, Any]:
    """The entry of its ``model_info``; empty where only the authors know."""
    robust = f"{100 * verdict['robust']:.2f}"
    facts = dict.fromkeys(("link", "name", "authors"), "") | {"additional_data": False, "number_forward_passes": 1}
    facts |= {"dataset": run.dataset, "venue": "", "architecture": ARCHITECTURES[run.model], "eps": run.epsilon.text}
    facts |= {"clean_acc": f"{100 * verdict['clean']:.2f}", "reported": robust, "autoattack_acc": robust}
    footnote = " ".join(f"{doubt.capitalize()}." for doubt in reservations(run, verdict))
    return facts | {"footnote": footnote, "unreliable": bool(verdict.get("flags"))}


def reservations(run: Run, verdict: dict[str, Any]) -> list[str]:
    """Why the leaderboard would not take the verdict as it stands, a phrase each."""
    said = [f"judged on {verdict['n']} test images, not {IMAGES}"] if verdict["n"] != IMAGES else []
    if run.data.source not in ("cifar10", "cifar100"):
        said.append(f"the images are of '{run.dataset}' ({run.data.source}); its leaderboards are cifar10, cifar100")
    if (precision := verdict.get("precision", "float32")) != "float32":
        said.append(f"judged in {precision}, not float32")
    flags = verdict.get("flags")
    return said + ([f"AutoAttack warns that it may be too kind: {', '.join(flags)}"] if flags else [])


def autoattack_log(verdict: dict[str, Any]) -> str:
    """The verdict as AutoAttack would log it, from the record of it."""
    lines = [
        f"pyautoattack {verdict['pyautoattack']}, version {verdict['version']}, norm {verdict['norm']}, "
        f"epsilon {verdict['epsilon']}, seed {verdict['seed']} plus the block's number, {verdict['n']} images",
        f"initial accuracy: {verdict['clean']:.2%}",
    ]
    for name in ATTACKS:
        seconds = verdict["seconds"][name]
        lines.append(f"robust accuracy after {name.upper()}: {verdict['after'][name]:.2%} ({seconds:.1f} s)")
    lines += [f"robust accuracy: {verdict['robust']:.2%}", f"warnings: {', '.join(verdict.get('flags', ())) or 'none'}"]
    return "\n".join(lines) + "\n"


def loader(run: Run) -> str:
    """Python that loads ``model.pt`` with RobustBench's own code."""
    module, imported, arguments = PARTS[run.model]
    name, channels = imported.partition(",")[0], run.data.image[0]
    return f'''"""{ARCHITECTURES[run.model]}: loads model.pt with RobustBench's own code. Logits of images in [0, 1]."""

from pathlib import Path

import torch
from robustbench.model_zoo.architectures.{module} import {imported}


class Net({name}):
    def __init__(self):
        super().__init__({arguments}, num_classes={run.data.classes})
        self.register_buffer("mu", torch.zeros(1, {channels}, 1, 1))
        self.register_buffer("sigma", torch.ones(1, {channels}, 1, 1))

    def forward(self, x):
        return super().forward((x - self.mu) / self.sigma)


model = Net()
model.load_state_dict(torch.load(Path(__file__).with_name("model.pt"), weights_only=True))
model.eval()
'''


def issue(run: Run, facts: dict[str, Any], verdict: dict[str, Any]) -> str:
    """What RobustBench's form for a new model asks, answered; what only the authors know is left open."""
    answers = {
        "Architecture": facts["architecture"],
        "Threat Model": verdict["norm"],
        "eps": facts["eps"],
        "Clean accuracy": f"{facts['clean_acc']} %",
        "Robust accuracy": f"{facts['autoattack_acc']} %",
        "Additional data": str(facts["additional_data"]).lower(),
        "Evaluation method": f"AutoAttack {verdict['version']} (pyautoattack {verdict['pyautoattack']}, seed "
        f"{verdict['seed']}), {verdict['n']} test images of {run.dataset}. {facts['footnote']}".strip(),
        "Checkpoint and code": "model.pt, load.py (say here where they are)",
    }
    claim = "\n".join(f"- **{question}**: {answer}" for question, answer in answers.items())
    return (
        "# Paper Information\n\n- **Paper Title**:\n- **Paper URL**:\n- **Paper authors**:\n\n"
        f"# Leaderboard Claim(s)\n\n## Model 1\n\n{claim}\n\n"
        "# Model Zoo:\n\n- [ ] I want to add my models to the Model Zoo\n"
        "- [x] I use an architecture that is included in RobustBench\n"
        "- [ ] I agree to release my model(s) under MIT license\n"
    )
