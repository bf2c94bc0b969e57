"""Networks that were not trained here: their weights found, fitted, doubted and judged; in a study, and alone."""

import copy
import json
import os
import pickle
import re
from pathlib import Path

import pyautoattack
import pytest
import torch
import torch.nn.functional as F
import yaml
from helpers import TINY, Wrapped, folder_of_images
from safetensors.torch import save_file
from torch import nn

from sat_core import models, plugins
from sat_core.__main__ import main
from sat_core.errors import ConfigError, Interrupted
from sat_core.runs import external, folder, rehearsal, weights
from sat_core.runs.check import check
from sat_core.runs.data import load
from sat_core.runs.files import checksum, read_json, write_json
from sat_core.runs.network import trained_model
from sat_core.sanity import doubts
from sat_core.study import Study

NETWORKS = '''
"""Not mine."""
import torch
import torch.nn.functional as F
from torch import nn


def build(image, classes):
    return Net(classes)


class Net(nn.Module):
    """With what a file of weights may lack, and must not."""

    def __init__(self, classes=10):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, classes)
        self.register_buffer("mu", torch.full((1,), 0.25))

    def forward(self, x):
        return self.fc(self.bn(self.conv(x - self.mu)).relu().flatten(1))


def three(image, classes, depth):
    return Net()


def seven():
    return Net(7)


def nothing():
    return None


def pair():
    return Pair()


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


def broken():
    raise OSError("no licence")
'''
RUN = "digits/build/stranger/eps0.3/seed0"


@pytest.fixture
def net(write_study, tmp_path) -> nn.Module:
    """The network in networks.py, as it is at first, and the study's folder for the working directory."""
    write_study()
    (tmp_path / "networks.py").write_text(NETWORKS)
    plugins.load.cache_clear()
    plugins.names.cache_clear()
    torch.manual_seed(0)
    return plugins.load("networks.py").Net()


@pytest.fixture
def study(net, write_study):
    """A function: the study of a row of weights that are saved in a form, a dict or a file's bytes."""

    def make(saved, suffix: str = "pt", **about) -> Study:
        path = Path(f"w.{suffix}")
        if suffix == "safetensors":
            save_file(saved, path)
        elif isinstance(saved, bytes):
            path.write_bytes(saved)
        else:
            torch.save(saved, path)
        content = copy.deepcopy(TINY)
        content["tables"]["digits"] = {"dataset": "digits", "defenses": ["stranger"], "epsilons": [0.3], "seeds": [4]}
        content["overrides"] = [{"set": {"attack": {"steps": 2}, "evaluation": {"images": 4}}}]
        content["external"] = {"stranger": {"model": "networks.py:build", "weights": str(path)} | about}
        return Study(write_study(content))

    return make


def renamed(net: nn.Module, before: str) -> dict:
    return {before + key: tensor for key, tensor in net.state_dict().items()}


@pytest.mark.parametrize(
    "saved, suffix, about",
    [
        (lambda net: net.state_dict(), "pt", {}),
        (lambda net: net.state_dict(), "safetensors", {}),
        (lambda net: {"epoch": 3, "state_dict": renamed(net, "module.")}, "pt", {}),
        (lambda net: {"last": net.state_dict(), "best": renamed(nn.Identity(), "")}, "pt", {}),
        (lambda net: {"best": net.state_dict(), "last": renamed(net, "")}, "pt", {"prefix": "best."}),
        (lambda net: renamed(net, "model.") | {"criterion.weight": torch.ones(1)}, "pt", {}),
        (
            lambda net: {k: v for k, v in net.state_dict().items() if k not in ("mu", "bn.num_batches_tracked")},
            "pt",
            {},
        ),
        (lambda net: net.state_dict(), "pt", {"model": "networks.py:Net"}),
        (lambda net: renamed(net, "network.") | {"mean": torch.zeros(1, 1, 1), "std": torch.ones(1, 1, 1)}, "pt", {}),
    ],
)
def test_weights_are_found_whatever_stands_around_them(net, study, saved, suffix, about):
    (run,) = study(saved(net), suffix, **about).runs
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(external.network(run, run.external)(x), net.eval()(x))


def test_a_network_that_normalises_outside_is_told_how(net, study):
    (run,) = study(net.state_dict(), mean=[0.5], std=[0.25]).runs
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(external.network(run, run.external)(x), net.eval()((x - 0.5) / 0.25))


OWN = '''
from torch import nn


def bare(image, classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3), View(), nn.Linear(144, classes))


class View(nn.Module):
    """As TRADES' network flattens, and many another: it counts on NCHW."""

    def forward(self, x):
        return x.view(x.size(0), -1)
'''


def test_a_normalisation_beside_the_networks_weights_must_be_given(net, study, caplog):
    Path("own.py").write_text(OWN)
    bare = plugins.load("own.py").bare((1, 8, 8), 10)
    saved = {f"1.{key}": tensor for key, tensor in bare.state_dict().items()}
    saved |= {"0.mean": torch.full((1,), 0.5), "0.std": torch.full((1,), 0.25)}
    (run,) = study(saved, model="own.py:bare").runs
    with pytest.raises(
        ConfigError, match=r"normalisation beside .* 0.mean, 0.std: give `mean` and `std`, or a network"
    ):
        external.network(run, run.external)
    (run,) = study(saved, model="own.py:bare", mean=[0.5], std=[0.25]).runs
    caplog.set_level("INFO")
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(external.network(run, run.external)(x), bare((x - 0.5) / 0.25))
    assert "not the network's, left alone: 0.mean, 0.std" in caplog.text


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize(
    "saved, about, message",
    [
        (lambda net: {"state_dict": Hostile()}, {}, r"w.pt holds more than tensors and plain values"),
        (lambda net: pickle.dumps(Hostile(), protocol=2), {}, r"w.pt holds more than tensors and plain values"),
        (lambda net: b"PK", {}, r"w.pt holds more than tensors and plain values, .* or is damaged"),
        (lambda net: b"", {}, r"w.pt cannot be read as weights: EOFError"),
        (lambda net: {k: v for k, v in net.state_dict().items() if k != "bn.running_var"}, {}, "lacks bn.running_var"),
        (lambda net: net.state_dict() | {"fc2.bias": torch.ones(1)}, {}, r"w.pt: fc2.bias is no weight of the network"),
        (lambda net: net.state_dict() | {"fc.bias": torch.ones(9)}, {}, "w.pt does not fit the network: .*fc.bias"),
        (
            lambda net: net.state_dict() | {"fc.bias": torch.full((10,), torch.nan)},
            {},
            "fc.bias holds numbers that are",
        ),
        (lambda net: {"a": net.state_dict(), "b": net.state_dict()}, {}, r"choose by `prefix`: a\., b\."),
        (lambda net: net.state_dict(), {"prefix": "ema."}, "the network build: it lacks ema.conv.weight"),
        (lambda net: net.state_dict(), {"model": "networks.py:bild"}, "unknown function 'bild'; did you mean 'build'"),
        (lambda net: net.state_dict(), {"model": "other.py:build"}, "other.py: cannot be read: No such file"),
        (lambda net: net.state_dict(), {"model": "networks.py"}, "is not FILE.py:FUNCTION"),
        (lambda net: net.state_dict(), {"model": "networks.py:three"}, r"needs \(image, classes, depth\)"),
        (lambda net: net.state_dict(), {"model": "networks.py:seven"}, "w.pt does not fit the network"),
        (lambda net: net.state_dict(), {"model": "networks.py:nothing"}, "makes no torch module: NoneType"),
        (lambda net: net.state_dict(), {"model": "networks.py:broken"}, "does not run: OSError: no licence"),
        (lambda net: net.state_dict(), {"model": "cnm"}, "unknown model 'cnm'; did you mean 'cnn'"),
        (lambda net: net.state_dict(), {"model": "robustbench:Nobody"}, "RobustBench"),
        (lambda net: net.state_dict(), {"weights": "v.pt"}, "external.stranger: weights v.pt: there is no such file"),
        (lambda net: net.state_dict(), {"weights": "w.onnx"}, "is not a file of type"),
        (lambda net: net.state_dict(), {"mean": [0.5]}, "mean and std belong together"),
        (lambda net: net.state_dict(), {"model": "networks.py:pair"}, r"networks.py:pair gives tuple for two images"),
    ],
)
def test_what_does_not_fit_gets_one_sentence_before_any_work_and_executes_nothing(net, study, saved, about, message):
    with pytest.raises(ConfigError, match=message) as said:
        found = study(saved(net), **about)
        check(found, found.runs)
    assert "\n" not in str(said.value)
    assert not Path("owned").exists() and not Path("results").exists()


@pytest.mark.parametrize("change, message", [("madry", "there is a defense of that name"), ("guest", "in no table")])
def test_an_external_has_a_name_of_its_own_and_a_table(net, study, write_study, change, message):
    content = {"tables": study(net.state_dict()).file.model_dump(mode="json")["tables"]}
    content["external"] = {name: {"model": "networks.py:Net", "weights": "w.pt"} for name in ("stranger", change)}
    with pytest.raises(ConfigError, match=message):
        Study(write_study(content))


def test_it_goes_through_everything_that_a_run_goes_through(net, study, capsys):
    found = study(net.state_dict())
    for verb in ("train", "evaluate", "curvature"):
        assert main([verb, "--study", "tiny.yaml", "--run", RUN]) == 0
    (run,) = found.runs
    record = folder.record_of(run, "train")
    assert record["external"]["weights"] == checksum(Path("w.pt"))
    assert "are mean, std and the order of classes" in record["external"]["doubts"][0]  # it has learnt nothing
    assert main(["report", "--study", "tiny.yaml"]) == 0
    tables = found.folder / "tables"
    for suffix in ("md", "tex", "html"):
        assert "stranger (external)" in (tables / f"digits.{suffix}").read_text()
    assert re.search(r"\nbuild,stranger,0.3,clean,.*w.pt, SHA-256", (tables / "digits.csv").read_text())
    assert "n/a: no attack, or not trained here" in (tables / "digits-cost.md").read_text()
    page = (found.folder / "report.html").read_text()
    assert ", external" in page and "order of classes" in page


def test_other_weights_under_the_same_name_are_brought_in_and_judged_again(net, study):
    (run,) = study(net.state_dict()).runs
    external.bring_in(run, run.external)
    assert folder.is_current(run, "train")
    torch.save({key: 2 * tensor for key, tensor in net.state_dict().items()}, "w.pt")
    (reason,) = folder.why_again(run, "train")
    assert reason.startswith("external.weights ")
    Path("networks.py").write_text(NETWORKS.replace("0.25", "0.5"))
    from sat_core.study import fingerprint

    fingerprint._hash.cache_clear()
    fingerprint.code.cache_clear()
    assert "networks.py changed" in folder.why_again(run, "train")
    Path("w.pt").unlink()
    assert any(reason.endswith("-> missing") for reason in folder.why_again(run, "train"))


@pytest.mark.parametrize(
    "last, said",
    [
        (nn.Identity(), []),
        (nn.Softmax(dim=1), ["its outputs are probabilities"]),
        (nn.Dropout(), []),  # in eval mode it is no matter
        (lambda z: z + 0.1 * torch.randn_like(z), ["two passes over the same images give different outputs"]),
        (lambda z: z.round() + 0 * z, ["the gradient is zero at 50 of 50 images"]),
        (lambda z: z.roll(1, dims=1), ["it is right about 0 of 50 images"]),
    ],
)
def test_doubts_name_what_fools_an_attack(last, said):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        linear[1].weight *= 20
    network = nn.Sequential(linear, last) if isinstance(last, nn.Module) else Wrapped(linear, last)
    x = torch.rand(50, 1, 8, 8)
    found = doubts(network.eval(), x, linear(x).argmax(dim=1))
    assert len(found) == len(said) and all(a.startswith(b) for a, b in zip(found, said, strict=True))


def test_images_outside_their_range_are_a_doubt():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x = 2 * torch.rand(8, 1, 8, 8)
    assert doubts(linear, x, linear(x).argmax(dim=1)) == [
        f"images lie in [{x.min():.3g}, {x.max():.3g}], not in [0, 1]"
    ]


def test_judged_alone_the_verdict_is_autoattacks_own_and_the_card_loads_it(net, study, capsys):
    study(net.state_dict())
    ask = ["judge", "--model", "networks.py:build", "--weights", "w.pt", "--dataset", "digits", "--epsilon", "0.01"]
    assert main([*ask, "--images", "5", "--out", "lab/out"]) == 0
    said = capsys.readouterr().out
    out = Path("lab/out")
    assert said.startswith("# judged: build for digits") and (out / "README.md").read_text() + "\n" == said
    summary = json.loads((out / "autoattack.json").read_text())
    (images,) = load(Study(out / "judge.yaml").runs[0].model_copy(update={"place": str(out)}), "test")
    x, y = images.batch(slice(5))
    own = pyautoattack.AutoAttack(net.eval(), eps=0.01, norm="Linf", seed=0, device="cpu")
    with torch.no_grad():
        right = net(own.run_standard_evaluation(x, y, batch_size=512)[0]).argmax(dim=1) == y
    rows = (out / "autoattack.csv").read_text().splitlines()[1:]
    assert [row.endswith(",") for row in rows] == right.tolist()
    assert summary["n"] == 5 and summary["epsilon"] == "0.01"

    (code,) = re.findall("```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    space: dict = {}
    exec(code.replace('"model.safetensors"', '"lab/out/model.safetensors"'), space)
    with torch.no_grad():
        torch.testing.assert_close(space["model"](x), net(x))
    before = (out / "autoattack.json").read_bytes()
    assert main([*ask, "--images", "5", "--out", "lab/out"]) == 0
    assert (out / "autoattack.json").read_bytes() == before
    for wrong, said in (
        (["--mean", "0.5"], "mean and std belong together"),
        (["--epsilon", "1.5"], "--epsilon: epsilon '1.5' is not a number or fraction in (0, 1]"),
        (["--dataset", "diggits"], "did you mean 'digits'?"),
    ):
        asked = (out / "judge.yaml").read_bytes()
        assert main([*ask, "--images", "5", "--out", "lab/out", *wrong]) == 2
        assert main([*ask, "--images", "5", "--out", "lab/new", *wrong]) == 2
        assert said in capsys.readouterr().err
        assert (out / "judge.yaml").read_bytes() == asked and not Path("lab/new").exists()
    assert main([*ask[:-1], "0.3", "--images", "5", "--out", "lab/out"]) == 2  # the same folder, another epsilon
    assert "lab/out holds a verdict on another question, as its judge.yaml says" in capsys.readouterr().err
    assert (out / "autoattack.json").read_bytes() == before


def test_the_network_in_autoattacks_wheel_gets_autoattacks_own_verdict(write_study, tmp_path):
    """Its builder takes no arguments, its weights were saved on a GPU in the old format; on noise led to each class."""
    examples = Path(pyautoattack.__file__).parent / "examples"
    theirs = plugins.load(str(examples / "resnet.py")).ResNet18().eval().requires_grad_(False)
    theirs.load_state_dict(torch.load(examples / "model_test.pt", map_location="cpu", weights_only=True))
    x, classes = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(10)
    for _ in range(10):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(theirs(x), classes), x)
        x = (x.detach() - 4 / 255 * gradient.sign()).clamp(0, 1)
    pixels = (255 * x).round().byte().permute(0, 2, 3, 1).repeat(2, 1, 1, 1)  # each class can be split in two
    labels = theirs(pixels.permute(0, 3, 1, 2) / 255).argmax(dim=1).tolist()
    assert labels == 2 * classes.tolist()
    folder_of_images(tmp_path / "data", pixels.numpy(), labels, classes=10)
    table = {"dataset": "cifar10-images", "defenses": ["wheel"], "epsilons": ["16/255"]}
    row = {"model": f"{examples}/resnet.py:ResNet18", "weights": f"{examples}/model_test.pt"}
    settings = {"data": {"root": "data"}, "validation": {"fraction": 0.5}, "evaluation": {"images": 2}}
    settings["resources"] = {"threads": 1}
    content = {"tables": {"t": table}, "external": {"wheel": row}, "overrides": [{"set": settings}]}
    (run,) = Study(write_study(content)).runs
    for verb in ("train", "evaluate"):
        assert main([verb, "--study", "tiny.yaml", "--run", run.id.path]) == 0
    (images,) = load(run, "test")
    x, y = images.batch(slice(2))
    own = pyautoattack.AutoAttack(theirs, eps=16 / 255, norm="Linf", seed=0, device="cpu")
    right = theirs(own.run_standard_evaluation(x, y)[0]).argmax(dim=1) == y
    _, rows = folder.judged(run)
    assert rows["label"].tolist() == rows["prediction"].tolist() == y.tolist()
    assert (rows["broken_by"] == "").tolist() == right.tolist()


@pytest.mark.parametrize(
    "out, said",
    [
        (".", "--out: . holds the weights themselves, w.pt; name another folder"),
        ("", "--out: . holds the weights themselves"),
        ("w.pt", "--out: w.pt is a file; name a folder"),
        ("lab", "--out: lab holds other files; name a new folder, or one that `judge` has made"),
    ],
)
def test_judge_writes_over_nothing_that_is_not_its_own(net, study, capsys, out, said):
    study(net.state_dict())
    Path("lab/README.md").parent.mkdir(exist_ok=True)
    Path("lab/README.md").write_text("mine")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    ask = ["judge", "--model", "networks.py:build", "--weights", "w.pt", "--dataset", "digits", "--epsilon", "0.01"]
    assert main([*ask, "--images", "5", "--out", out]) == 2
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_training_of_what_is_not_trained_here_is_refused_and_a_mixed_study_can_be_rehearsed(net, study, write_study):
    content = yaml.safe_load(study(net.state_dict()).path.read_text())
    content["tables"]["digits"] |= {"models": ["cnn"], "defenses": ["stranger", "madry"]}
    mixed = Study(rehearsal.write(Study(write_study(content))))
    check(mixed, mixed.runs)
    assert [run.evaluation.iterations for run in mixed.runs] == [10, 10]
    assert {run.defense: run.training.epochs for run in mixed.runs}["madry"] == 2
    content["overrides"].append({"where": {"defense": "stranger"}, "set": {"training": {"epochs": 7}}})
    with pytest.raises(ConfigError, match=r"overrides.1.set.training: of stranger, not trained here"):
        Study(write_study(content)).runs  # noqa: B018


def test_weights_that_are_no_floating_point_are_refused(net, tmp_path):
    weights_file = tmp_path / "int.safetensors"
    model = models.build("cnn", image=(1, 8, 8), classes=10, mean=[0.0], std=[1.0])
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file({name: (50 * tensor).to(torch.int8) for name, tensor in state.items()}, weights_file)
    with pytest.raises(ConfigError, match="holds int8, no floating point"):
        weights.fit(weights_file, model, "cnn")


def test_what_an_external_lacks_is_named_with_its_prefix(net, tmp_path):
    path = tmp_path / "w.safetensors"
    model = models.build("cnn", image=(1, 8, 8), classes=10, mean=[0.0], std=[1.0])
    save_file({f"ema.{name}": tensor for name, tensor in net.state_dict().items()}, path)
    with pytest.raises(ConfigError, match=r"it lacks other\..*, and holds ema"):
        weights.fit(path, model, "cnn", "other.")


def test_a_signal_while_weights_are_read_is_no_fault_of_theirs(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(torch, "load", interrupted)
    with pytest.raises(Interrupted):
        weights.read(tmp_path / "any.pt")


def test_the_card_goes_where_the_weights_go(judged):
    from sat_core.report.card import write_card

    (run,) = judged.runs
    write_card(run)
    text = (run.folder / "README.md").read_text()
    assert folder.weights(run) in text and "Trained with psat, seed 0" in text
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    space: dict = {}
    exec(code.replace('"model.safetensors"', repr(str(run.folder / "model.safetensors"))), space)
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(space["model"](x), trained_model(run, torch.device("cpu"))[0](x))
    record = read_json(run.folder / "autoattack.json")
    other = {"version": "standard, cut short", "precision": "tf32", "clean": 0.75, "robust": 0.25}
    write_json(run.folder / "autoattack.json", record | other)
    write_card(run)
    text = (run.folder / "README.md").read_text()
    assert "\n| clean | 75.00 |" in text and "\n| robust: " in text and ") | 25.00 |" in text
    assert "AutoAttack (standard, cut short, L∞" in text and "Judged in tf32, not float32." in text
    (run.folder / "autoattack.json").unlink()
    (run.folder / ".kept/autoattack.json").unlink()
    write_card(run)
    assert not (run.folder / "README.md").exists()
