"""One's own defenses and networks: files beside the study, which nothing else depends on."""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import MADRY, PSAT, TINY, Project, jobs, run_epoch

from sat_core import plugins
from sat_core.__main__ import main
from sat_core.errors import ConfigError
from sat_core.runs import folder
from sat_core.runs.check import check
from sat_core.runs.network import measuring_attack, validation_attack
from sat_core.runs.trainer import Trainer
from sat_core.study import Study, fingerprint

MINE = '''
"""Two defenses and a network of mine."""
from torch import nn
from sat_core.attacks import Perturbation, uniform_start
from sat_core.defenses import Defense, SelfPaced
from sat_core.difficulty import probability_gap
from sat_core.fields import Positive


class Noisy(Defense):
    """Noise instead of an attack."""

    strength: Positive = 1.0

    def perturb(self, batch):
        x = uniform_start(batch.x, self.strength * batch.attack.epsilon)
        return Perturbation(x, batch.y.new_zeros(len(x)))


class Halved(SelfPaced):
    """psi_P, halved."""

    def difficulty(self, batch, iterate):
        return probability_gap(iterate.logits, batch.y[iterate.rows]) / 2


class _Helper(nn.Module):
    """Not for studies."""


def linear(image, classes):
    channels, height, width = image
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))
'''


OUTER_LOSS = """
def _(self, batch, found):
    return nn.functional.cross_entropy(batch.model(found.x), batch.y, reduction="none")


Noisy.outer_loss = _


class _Helper"""

IN_BETWEEN = """    def perturb(self, batch):
        batch.state["last"] = [1]
        return super().perturb(batch)

    def _perturb"""


def before_perturb(line: str) -> tuple[str, str]:
    return "    def perturb", f"    {line}\n\n    def perturb"


HIDDEN = """    layers, network = [nn.Linear(64, classes)], nn.Flatten()
    network.forward = lambda x: layers[0](x.flatten(1))
    return network or ("""

REMEMBERED = """    def perturb(self, batch):
        batch.state["last"] = batch.x + batch.state.get("last", 0)
        return super().perturb(batch)

    def _perturb"""


@pytest.fixture
def mine(write_study, tmp_path) -> dict:
    """A study with two defenses and a network out of ``lab/mine.py``."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/mine.py").write_text(MINE)
    study = copy.deepcopy(TINY) | {"plugins": ["lab/mine.py"]}
    study["tables"]["digits"] |= {"models": ["cnn", "linear"], "defenses": ["psat", "noisy", "halved"]}
    study["overrides"][1]["where"]["defense"] = ["psat", "halved"]
    return study


def test_a_file_beside_the_study_offers_defenses_and_networks(mine, write_study):
    study = Study(write_study(mine))
    check(study, study.runs)
    trainer = Trainer(study.run("digits/linear/noisy/eps0.3/seed0"), torch.device("cpu"))
    run_epoch(trainer)
    assert trainer.history[-1]["steps"] == 0 and trainer.history[-1]["validation_clean"] > 0.3
    assert sum(p.numel() for p in trainer.model.parameters()) == 650


def test_a_plugin_counts_for_the_runs_that_use_it_and_for_no_others(mine, write_study):
    study = Study(write_study(mine))
    before = {run.id.path: folder.present(run, "train")["code"] for run in study.runs}
    for path, code in before.items():
        assert ("lab/mine.py" in code) == ("linear" in path or "noisy" in path or "halved" in path)
    judged = folder.present(study.run("digits/cnn/noisy/eps0.3/seed0"), "evaluate")["code"]
    assert "lab/mine.py" not in judged and "models.cnn" in judged


BESIDE = '''
import torch
from torch import nn

from helper import start


def LeNet(image, classes, *, width=4):
    return Net(classes, width)


class Net(nn.Module):
    """With a frozen stem, and a head that no loss uses."""

    def __init__(self, classes, width):
        super().__init__()
        self.stem, self.spare = nn.Conv2d(1, width, 3).requires_grad_(False), nn.Linear(3, 3)
        self.conv, self.fc = nn.Conv2d(width, width, 3), nn.Linear(16 * width, classes)

    def forward(self, x):
        return self.fc(self.conv(self.stem(x)).view(len(x), -1) + start)
'''


@pytest.fixture
def beside(write_study, tmp_path, monkeypatch) -> dict:
    """A study of a network that flattens by ``view``, with a neighbour in its own folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    plugins.read.cache_clear()
    plugins.load.cache_clear()
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/helper.py").write_text("start = 0\n")
    (tmp_path / "lab/nets.py").write_text(BESIDE)
    study = copy.deepcopy(TINY) | {"plugins": ["lab/nets.py"]}
    study["tables"]["digits"]["models"] = ["lenet"]
    study["overrides"].append({"set": {"training": {"awp": {"gamma": 0.01}}, "validation": {"steps": 7}}})
    return study


def test_a_network_as_others_write_it_trains_with_its_neighbour(beside, write_study):
    study = Study(write_study(beside))
    check(study, study.runs)
    run = study.run("digits/lenet/madry/eps0.3/seed0")
    trainer = Trainer(run, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    run_epoch(trainer)
    moved = {name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"network.{layer}.{kind}" for layer in ("conv", "fc") for kind in ("weight", "bias")}
    assert {"lab/nets.py", "lab/helper.py"} <= set(folder.present(run, "train")["code"])
    assert validation_attack(run).steps == 7 and measuring_attack(run).steps == run.attack.steps
    beside["tables"]["digits"]["models"] = ["lennet"]
    with pytest.raises(ConfigError, match="unknown model 'lennet'; did you mean 'lenet'"):
        Study(write_study(beside))


def test_two_neighbours_of_one_name_are_not_taken_for_one_another(beside, write_study, tmp_path):
    plugins.load("lab/nets.py")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/helper.py").write_text("start = 1\n")
    (tmp_path / "other/nets.py").write_text(BESIDE)
    with pytest.raises(ConfigError, match=r"'helper' is .*lab/helper.py here, and not .*other/helper.py: give yours"):
        plugins.load("other/nets.py")


def write(content: str) -> None:
    Path("lab/mine.py").write_text(content)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("plugins"), "unknown defense 'noisy'"),
        (lambda s: s.update(plugins=["lab/none.py"]), r"plugin .*none.py: cannot be read: No such file"),
        (lambda s: write("def"), "not valid Python"),
        (lambda s: write("x = 1"), "holds neither a subclass of Defense nor a function"),
        (lambda s: write(MINE.replace("Noisy", "Madry")), "there is a defense 'madry' already"),
        (lambda s: write(MINE.replace("Noisy(Defense)", "Noisy(dict)")), "is no subclass of"),
        (lambda s: write(MINE.replace("def difficulty", "def hardness")), "'halved': it has no method `difficulty"),
        (lambda s: write("import nowhere\n" + MINE), "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_plugin_that_will_not_do_gets_its_sentence(mine, write_study, change, message):
    plugins.read.cache_clear()
    plugins.load.cache_clear()
    change(mine)
    with pytest.raises(ConfigError, match=message):
        study = Study(write_study(mine))
        check(study, study.runs)


@pytest.mark.parametrize(
    "mistake, message",
    [
        (("return Perturbation(x, batch.y.new_zeros(len(x)))", "return x"), "perturb gives Tensor, not a Perturbation"),
        (("return Perturbation(x, ", "return Perturbation(x + 5, "), r"images \(4, 1, 8, 8\) from 5.* within 0 and 1"),
        (("def perturb(self, batch)", "def perturb(self, batch, more)"), "'noisy' cannot take a step .*: TypeError"),
        (("def linear(image, classes)", "def linear(classes, image)"), "model 'linear' does not run: TypeError"),
        (("batch.y[iterate.rows]) / 2", "batch.y[iterate.rows]) * torch.nan"), r"difficulty is \[nan, nan"),
        (("batch.y[iterate.rows]) / 2", "batch.y[iterate.rows]) + 1"), "its range ends at 1"),
        (before_perturb("def initial_state(self, n, device):\n        return {'k': 0}"), r"state\['k'\] is no tensor"),
        (("class _Helper", OUTER_LOSS), r"outer_loss gives \(4,\): a scalar"),
        (("[iterate.rows]) / 2", ") / 2"), "cannot take a step .*: RuntimeError: Size does not match"),
        (
            ("[iterate.rows]) / 2", "[iterate.rows])[:, None]"),
            r"its difficulty has the shape \(4, 1\), where a number for each",
        ),
        (("batch.y.new_zeros(len(x))", "10"), "perturb gives steps 10, where a number for each"),
        (("    def perturb", IN_BETWEEN), r"state\['last'\] is no tensor but list"),
        (("    def perturb", REMEMBERED), "cannot take a step .*: RuntimeError: The size of tensor"),
        (("return Perturbation(x, ", "batch.model.eval()\n        return Perturbation(x, "), "in eval mode: use"),
        (before_perturb("def initial_state(self):\n        pass"), "cannot take a step .*: TypeError"),
        (before_perturb("def resolved(self, epochs):\n        pass"), "Noisy cannot be made: AttributeError"),
        (before_perturb('selects_on = "robst"'), "Noisy.selects_on is robust or clean, not 'robst'"),
        (("    return nn.Sequential(", HIDDEN), "model 'linear' has no parameters: layers in a plain list"),
        (("from torch import nn", "import sys, torch\nfrom torch import nn\nsys.exit(0)"), "has ended the process"),
    ],
)
def test_a_mistake_in_own_code_is_a_sentence_before_any_work(mine, write_study, capsys, mistake, message):
    plugins.read.cache_clear()
    plugins.load.cache_clear()
    write(MINE.replace("from torch import nn", "import torch\nfrom torch import nn").replace(*mistake))
    assert main(["check", "--study", str(write_study(mine))]) == 2
    assert re.search(message, capsys.readouterr().err)


NETWORKS = '''
"""What H-SAT cannot look into, and what it can."""
from torch import nn


class Net(nn.Module):
    def __init__(self, classes, order):
        super().__init__()
        for name in order:
            layer = nn.Linear(256, classes) if name == "head" else nn.Conv2d(1, 4, 3, padding=1)
            setattr(self, name, layer)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))


def swapped(image, classes):
    return Net(classes, ["head", "conv"])


def spare(image, classes):
    return Net(classes, ["conv", "head", "unused"])


def pooled(image, classes):
    return nn.Sequential(nn.Conv2d(1, classes, 8), nn.Flatten())


def good(image, classes):
    return Net(classes, ["conv", "head"])


class Behind(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(10, 10), nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)))


def behind(image, classes):
    return Behind()


def grouped(image, classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, classes))
'''


@pytest.mark.parametrize(
    "network, metric, message",
    [
        ("swapped", "classifier", "made last must be an nn.Linear to 10 logits, not Conv2d(1, 4"),
        ("spare", "classifier", "made last must be an nn.Linear to 10 logits, not Conv2d(1, 4"),
        ("pooled", "classifier", "made last must be an nn.Linear to 10 logits, not Conv2d(1, 10"),
        ("behind", "classifier", "made last must be called last, on (N, features): it is Linear(in_features=10"),
        ("grouped", "gauss_newton", "cannot take a step with model 'grouped': ValueError: no per-sample gradient norm"),
        ("good", "classifier", ""),
        ("good", "gauss_newton", ""),
        ("grouped", "classifier", ""),
    ],
)
def test_hsat_says_before_any_work_where_it_cannot_look_into_a_network(write_study, capsys, network, metric, message):
    Path("nets.py").write_text(NETWORKS)
    study = copy.deepcopy(TINY) | {"plugins": ["nets.py"]}
    study["tables"]["digits"] |= {"models": [network], "defenses": ["hsat"]}
    study["overrides"][1] = {"set": {"options": {"metric": metric, "curriculum": {"kind": "steps", "epochs": [0, 1]}}}}
    assert main(["check", "--study", str(write_study(study))]) == (2 if message else 0)
    assert message in capsys.readouterr().err


def test_what_a_plugin_imports_from_the_project_counts_too(mine, write_study):
    Path("lab/scale.py").write_text("from lab.deep import half\nlog = [2]\n")
    Path("lab/deep.py").write_text("half = 0.5\n")
    write(MINE + "import lab.scale\nlab.scale.log.append(3)\nimport sat_core.awp\n")
    known = (fingerprint.code, fingerprint._hash, fingerprint._imports)

    def forget():
        for one in known:
            one.cache_clear()

    forget()
    study = Study(write_study(mine))
    run = study.run("digits/cnn/noisy/eps0.3/seed0")
    code = folder.present(run, "train")["code"]
    assert {"lab/mine.py", "lab/scale.py", "lab/deep.py", "awp"} <= set(code)
    assert "lab/scale.py" not in folder.present(study.run(PSAT), "train")["code"]
    Path("lab/deep.py").write_text("half = 0.25\n")
    forget()
    assert fingerprint.changed_code(code, folder.present(run, "train")["code"]) == ["lab/deep.py changed"]
    Path("lab/deep.py").write_text("half =\n")
    forget()
    with pytest.raises(ConfigError, match=r"lab/deep.py: cannot be read as Python"):
        folder.present(run, "train")


@pytest.mark.parametrize(("mistake", "shape"), [(".mean()", r"\(\)"), ("[:, None]", r"\(64, 1\)")])
def test_a_difficulty_that_is_not_a_number_a_sample_gets_its_sentence(mine, write_study, mistake, shape):
    plugins.load.cache_clear()
    write(MINE.replace("batch.y[iterate.rows]) / 2", f"batch.y[iterate.rows]){mistake}"))
    trainer = Trainer(Study(write_study(mine)).run("digits/linear/halved/eps0.3/seed0"), torch.device("cpu"))
    with pytest.raises(ConfigError, match=f"'halved': its difficulty has the shape {shape}, where a number for each"):
        run_epoch(trainer)


def test_snakemake_runs_a_plugin_and_redoes_only_its_runs_after_an_edit(tmp_path):
    study = copy.deepcopy(TINY) | {"plugins": ["../lab/mine.py"]}
    study["tables"]["digits"]["defenses"] = ["psat", "noisy"]
    (tmp_path / "here/lab").mkdir(parents=True)
    (tmp_path / "here/lab/mine.py").write_text(MINE)
    project = Project(tmp_path / "here", study, "tiny")
    project.snakemake("--until", "train")
    assert jobs(project.snakemake("-n", "--until", "train")) == {}
    (tmp_path / "here/lab/mine.py").write_text(MINE.replace("self.strength *", "2 * self.strength *"))
    said = project.snakemake("-n", "--until", "train")
    assert jobs(said) == {"train": 1}
    assert "train digits/cnn/noisy/eps0.3/seed0 again: lab/mine.py changed" in said


def test_a_study_that_extends_another_trains_only_what_is_new(tmp_path):
    project = Project(tmp_path / "here", TINY, "tiny")
    project.snakemake("--until", "evaluate")
    (tmp_path / "here/config/lab.py").write_text(MINE)
    project.study("more").write_text(
        "extends: tiny.yaml\nplugins: [lab.py]\ntables: {digits: {dataset: digits, defenses: [noisy]}}\n"
    )
    wanted = ("--configfile", "config/more.yaml", "--", "results/more/tables/digits.md")
    project.snakemake(*wanted)
    there, here = project.results / "runs", tmp_path / "here/results/more/runs"
    for name in ("model.safetensors", "autoattack.csv"):
        for run in (MADRY, PSAT):
            assert (here / run / name).samefile(there / run / name)
    assert '"adopted_from": "results/tiny/runs/' in (here / PSAT / "run.json").read_text()
    new = here / "digits/cnn/noisy/eps0.3/seed0/run.json"
    assert "adopted_from" not in new.read_text()
    table = (tmp_path / "here/results/more/tables/digits.md").read_text()
    assert all(f"| {name}" in table for name in ("Madry et al. [2018]", "P-SAT", "noisy"))
    assert jobs(project.snakemake("-n", *wanted)) == {}


def test_studies_that_extend_each_other_are_a_sentence(write_study, tmp_path):
    (tmp_path / "one.yaml").write_text("extends: two.yaml\n")
    write_study("extends: one.yaml\n", "two")
    with pytest.raises(ConfigError, match=r"one.yaml: extends: two.yaml extends this study in turn"):
        Study("two.yaml")
    (tmp_path / "two.yaml").write_text("extends: 3\n")
    with pytest.raises(ConfigError, match=r"two.yaml: extends: a word is expected, not 3"):
        Study("one.yaml")
