"""A judged run in RobustBench's form: its names and shapes, what is told of it, and its own code on the weights."""

import json
import runpy

import numpy as np
import pytest
import torch
import yaml
from helpers import PSAT, folder_of_images

from sat_core.__main__ import main
from sat_core.errors import ConfigError
from sat_core.models import _robustbench
from sat_core.runs import export, external
from sat_core.runs.network import trained_model
from sat_core.study import Study

CPU = torch.device("cpu")
KEYS = {
    *("link", "name", "authors", "venue", "architecture", "dataset", "eps", "clean_acc", "reported", "autoattack_acc"),
    *("additional_data", "number_forward_passes"),
}


@pytest.fixture
def exported(write_study, tmp_path):
    """A function: train a network for a step on a few images of noise, judge and export it."""

    def make(model: str):
        folder_of_images(tmp_path / "data", np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8))
        dataset = {
            "data": {"source": "folder", "root": "data", "image": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3},
            "training": {"epochs": 1, "lr": 0.01, "batch_size": 8},
            "attack": {"steps": 1, "relative_step_size": 1},
            "validation": {"fraction": 0.34},
            "evaluation": {"images": 1},
        }
        (tmp_path / "datasets").mkdir()
        (tmp_path / "datasets/noise.yaml").write_text(json.dumps(dataset))
        table = {"dataset": "noise", "models": [model], "defenses": ["madry"], "epsilons": ["128/255"]}
        study = Study(write_study({"tables": {"noise": table}}))
        (run,) = study.runs
        for verb in ("train", "evaluate"):
            assert main([verb, "--study", "tiny.yaml", "--run", run.id.path]) == 0
        assert main(["export", "--format", "robustbench", "--study", "tiny.yaml", "--run", run.id.path]) == 0
        return run

    return make


def their_names() -> set[str]:
    """The state of RobustBench's PreActResNet-18 with ``bn_before_fc``, ``mu`` and ``sigma``, written out."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    blocks = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    names = {f"{block}.conv{k}.weight" for block in blocks for k in (1, 2)}
    names |= {f"{block}.bn{k}.{part}" for block in blocks for k in (1, 2) for part in norm}
    names |= {f"layer{i}.0.shortcut.0.weight" for i in (2, 3, 4)} | {f"bn.{part}" for part in norm}
    return names | {"conv1.weight", "linear.weight", "linear.bias", "mu", "sigma"}


def test_a_run_leaves_with_names_facts_and_verdict_as_robustbench_wants_them_and_comes_back_the_same(
    exported, write_study
):
    run = exported("preactresnet18")
    out = run.folder / "robustbench"
    state = torch.load(out / "model.pt", weights_only=True)
    assert set(state) == their_names()
    assert state["mu"].shape == (1, 3, 1, 1) and state["layer4.0.shortcut.0.weight"].shape == (512, 256, 1, 1)
    facts = json.loads((out / "model_info.json").read_text())
    assert set(facts) >= KEYS
    assert (facts["eps"], facts["architecture"], facts["additional_data"]) == ("128/255", "PreActResNet-18", False)
    verdict = json.loads((run.folder / "autoattack.json").read_text())
    assert (
        facts["autoattack_acc"] == f"{100 * verdict['robust']:.2f}" and "judged on 1 test" in facts["footnote"].lower()
    )
    assert (out / "autoattack.csv").read_bytes() == (run.folder / "autoattack.csv").read_bytes()
    assert f"robust accuracy: {verdict['robust']:.2%}" in (out / "autoattack.log").read_text()
    assert "- **eps**: 128/255" in (out / "issue.md").read_text()

    table = {"dataset": "noise", "defenses": ["back"], "epsilons": [0.1]}
    back = {"model": "preactresnet18", "weights": str(out / "model.pt")}
    (again,) = Study(write_study({"tables": {"t": table}, "external": {"back": back}}, "back")).runs
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(external.network(again, again.external)(x), trained_model(run, CPU)[0](x))


def test_the_accuracies_of_an_export_are_those_of_the_verdict(tiny):
    run = tiny.runs[0].model_copy(update={"model": "preactresnet18"})
    facts = export.model_info(run, {"clean": 0.9, "robust": 0.4, "n": 10_000})
    assert (facts["clean_acc"], facts["reported"], facts["autoattack_acc"]) == ("90.00", "40.00", "40.00")


@pytest.mark.parametrize("model", ["preactresnet18", "wrn-34-10"])
def test_robustbench_own_code_gives_the_same_logits(exported, model):
    try:
        _robustbench.zoo()
    except ConfigError as error:
        pytest.skip(str(error))
    run = exported(model)
    theirs = runpy.run_path(str(run.folder / "robustbench/load.py"))["model"]
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = trained_model(run, CPU)[0](x)
        apart = float((theirs(x) - ours).abs().max())
    print(f"{model}: logits of size {float(ours.abs().max()):.3g} differ by {apart:.2g}")
    assert apart < 1e-5 * float(ours.abs().max())


def test_a_network_of_robustbench_comes_in_by_its_name(write_study):
    try:
        theirs = _robustbench.zoo()["cifar10"]["Wong2020Fast"]["model"]().eval()
    except ConfigError as error:
        pytest.skip(str(error))
    state = {f"module.{key}": tensor for key, tensor in theirs.state_dict().items() if key not in ("mu", "sigma")}
    path = write_study().with_name("Wong2020Fast.pt")
    torch.save({"state_dict": state}, path)
    table = {"dataset": "cifar10", "defenses": ["fast"], "epsilons": ["8/255"]}
    row = {"model": "robustbench:Wong2020Fast", "weights": path.name}
    (run,) = Study(write_study({"tables": {"t": table}, "external": {"fast": row}})).runs
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(external.network(run, run.external)(x), theirs(x))
    assert run.id.path == "cifar10/wong2020fast/fast/eps8-255/seed0"


def test_what_cannot_leave_gets_its_sentence(judged, monkeypatch):
    (run,) = judged.runs
    with pytest.raises(ConfigError, match=r"RobustBench has no such network: unknown model 'cnn'"):
        export.export(run, run.folder)
    content = yaml.safe_load(judged.path.read_text())
    content["overrides"].append({"set": {"evaluation": {"seed": 7}}})
    judged.path.write_text(yaml.safe_dump(content))
    monkeypatch.setitem(export.OURS, "cnn", None)
    with pytest.raises(ConfigError, match="is the run's own folder: name another"):
        export.export(run, run.folder)
    with pytest.raises(
        ConfigError, match=r"autoattack.csv is stale \(evaluation.seed 0 -> 7\): `evaluate` the run again"
    ):
        export.export(Study(judged.path).run(PSAT), run.folder)
