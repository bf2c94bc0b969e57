"""Networks: the public parameter counts, and one step of every pair that fits."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, tiny_with
from torch.utils.flop_counter import FlopCounterMode

from sat_core import models
from sat_core.attacks import PGD
from sat_core.defenses import Batch, build
from sat_core.errors import ConfigError
from sat_core.models._residual import Block
from sat_core.models.cnn import FoldingConv2d
from sat_core.runs.trainer import Trainer
from sat_core.study import Study
from sat_core.study.settings import Data

SHAPES = {
    "digits": Data(source="digits", image=(1, 8, 8), classes=10),
    "mnist": Data(source="mnist", image=(1, 28, 28), classes=10),
    "cifar10": Data(source="cifar10", image=(3, 32, 32), classes=10, mean=[0.5] * 3, std=[0.25] * 3),
    "cifar100": Data(source="cifar100", image=(3, 32, 32), classes=100, mean=[0.5] * 3, std=[0.25] * 3),
    "imagenette": Data(source="imagenette", image=(3, 160, 160), classes=10, mean=[0.5] * 3, std=[0.25] * 3),
}
COUNTS = {
    ("cnn", "mnist"): 64 * 65 + 128 * (64 * 36 + 1) + 128 * (128 * 25 + 1) + 10 * 2049,
    ("smallcnn", "mnist"): 312_202,
    ("preactresnet18", "cifar10"): 11_172_170,
    ("wrn-34-10", "cifar10"): 46_160_474,
    ("vgg16bn", "cifar10"): 14_728_266,
    ("densenet121", "cifar10"): 6_956_298,
    ("resnet34", "imagenette"): 21_289_802,
}
FIT = {
    "digits": {"cnn", "small", "convsmall", "preactresnet18", "wrn-34-10", "densenet121"},
    "mnist": {"cnn", "smallcnn", "small", "convsmall", "preactresnet18", "wrn-34-10", "densenet121"},
    "cifar10": {"small", "convsmall", "preactresnet18", "wrn-34-10", "vgg16bn", "densenet121"},
    "cifar100": {"small", "convsmall", "preactresnet18", "wrn-34-10", "vgg16bn", "densenet121"},
    "imagenette": {"small", "convsmall", "preactresnet18", "wrn-34-10", "vgg16bn", "densenet121", "resnet34"},
}


@pytest.mark.parametrize(("name", "dataset"), COUNTS)
def test_parameter_counts_are_the_public_ones(name, dataset):
    with torch.device("meta"):
        model = models.build(name, **SHAPES[dataset].network)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name, dataset]


@pytest.mark.parametrize("dataset", SHAPES)
def test_a_model_that_does_not_fit_is_refused_before_work(dataset):
    for name in sorted(models.names()):
        if name in FIT[dataset]:
            models.check(name, **SHAPES[dataset].network)
        else:
            with pytest.raises(ConfigError, match=f"model '{name}' does not fit images of"):
                models.check(name, **SHAPES[dataset].network)


def operations(name: str, dataset: str) -> float:
    """Of a forward and a backward pass of two images, which are gone through without computing anything."""
    data = SHAPES[dataset]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = models.build(name, **data.network)
        model(torch.empty(2, *data.image)).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters()), name
    return counter.get_total_flops()


def test_a_network_with_other_outputs_is_refused_before_work(tmp_path):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def three(image, classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
        "class two(nn.Linear):\n"
        "    def __init__(self, image, classes): super().__init__(64, classes)\n"
        "    def forward(self, x): return 2 * (super().forward(x.flatten(1)),)\n"
    )
    for name, found in (("three", r"\(2, 3\)"), ("two", "tuple")):
        with pytest.raises(ConfigError, match=rf"model '{name}' gives {found} for two images, not \(2, 10\)"):
            models.check(name, **SHAPES["digits"].network, file=str(tmp_path / "nets.py"))


@pytest.mark.parametrize("dataset", SHAPES)
def test_every_pair_that_fits_does_one_step_on_two_images(dataset):
    """P-SAT, so that the attack's forward and backward, the rule and the step all run.

    Where that takes long, a network that is as it is on smaller images is only gone through.
    """
    data = SHAPES[dataset]
    psat = build("psat", {"curriculum": {"kind": "steps", "epochs": [0]}}, 2)
    smaller = [other for other in SHAPES if SHAPES[other].image[1] < data.image[1]]
    for name in sorted(FIT[dataset]):
        if operations(name, dataset) > 25e9 and any(name in FIT[other] for other in smaller):
            continue
        torch.manual_seed(0)
        model = models.build(name, **data.network)
        x, y = torch.rand(2, *data.image), torch.tensor([0, data.classes - 1])
        batch = Batch(model, x, y, torch.arange(2), data.classes, 0, PGD(0.1, 0.05, 1))
        loss = psat.outer_loss(batch, psat.perturb(batch))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters()), name


def test_normalisation_lives_inside_the_model():
    model = models.Normalized(torch.nn.Identity(), [0.2, 0.4], [0.5, 0.25])
    x = torch.tensor([0.7, 0.4]).view(1, 2, 1, 1)
    assert torch.allclose(model(x).flatten(), torch.tensor([1.0, 0.0]))
    assert list(models.build("cnn", **SHAPES["mnist"].network).state_dict())[:2] == ["mean", "std"]


@pytest.mark.parametrize(("width", "stride"), [(4, 1), (6, 2)])
def test_a_pre_activation_block_is_its_formula(width, stride):
    torch.manual_seed(0)
    block, x = Block(4, width, stride).eval(), torch.randn(2, 4, 6, 6)
    active = block.bn1(x).relu()
    inner = block.bn2(F.conv2d(active, block.conv1.weight, stride=stride, padding=1)).relu()
    skip = x if stride == 1 else F.conv2d(active, block.shortcut.weight, stride=stride)
    assert torch.allclose(block(x), skip + F.conv2d(inner, block.conv2.weight, padding=1), atol=1e-6)


def test_batch_norm_mode_of_the_attack_is_a_choice_that_matters(write_study):
    study = TINY | {"overrides": [*TINY["overrides"], {"set": {"attack": {"batchnorm": "train"}}}]}
    study["tables"] = {"digits": TINY["tables"]["digits"] | {"models": ["preactresnet18"], "defenses": ["psat"]}}
    address = "digits/preactresnet18/psat/eps0.3/seed0"
    found = []
    for overrides in (study["overrides"], TINY["overrides"]):
        trainer = Trainer(Study(write_study(study | {"overrides": overrides})).run(address), torch.device("cpu"))
        batch = next(trainer.train_images.batches(torch.arange(8), 8))
        before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        torch.manual_seed(1)
        index, x, y = batch
        found.append(trainer.defense.perturb(Batch(trainer.model, x, y, index, 10, 1, trainer.attack, {})).x)
        assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())
    assert not torch.equal(*found)


@pytest.mark.parametrize("n", [1, 3])
def test_a_folded_convolution_is_the_plain_one_and_so_are_its_gradients(n):
    """Up to the order of additions, in float64; the first layer of the paper's network, and a smaller one."""
    torch.manual_seed(n)
    for shape, size in (((1, 64, 8, 2, 3), 28), ((3, 5, 6, 3, 0), 15)):
        channels, width, kernel, stride, padding = shape
        folded = FoldingConv2d(channels, width, kernel, stride, padding).double()
        plain = torch.nn.Conv2d(channels, width, kernel, stride, padding).double()
        plain.load_state_dict(folded.state_dict())
        x = torch.rand(n, channels, size, size, dtype=torch.float64, requires_grad=True)
        outputs = [layer(x) for layer in (folded, plain)]
        assert torch.allclose(*outputs, atol=1e-12)
        direction = torch.randn_like(outputs[0])
        gradients = [
            torch.autograd.grad(output, [x, *layer.parameters()], direction)
            for output, layer in zip(outputs, (folded, plain), strict=True)
        ]
        assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(*gradients, strict=True))


def test_bfloat16_is_of_the_layers_alone_and_evaluation_knows_nothing_of_it():
    torch.manual_seed(0)
    model, x = models.build("cnn", **SHAPES["mnist"].network).eval(), torch.rand(4, 1, 28, 28)
    exact = model(x)
    models.compute_in("bfloat16", model)
    seen = []
    model.network[2].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    rough = model(x)
    assert seen == [(torch.bfloat16, torch.bfloat16)] and rough.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert 0 < (rough - exact).abs().max() < 0.05
    models.compute_in("float32", model)
    assert torch.equal(model(x), exact)


def test_tf32_is_asked_for_in_the_way_that_others_ask_for_it():
    model = models.build("cnn", **SHAPES["mnist"].network)
    try:
        for precision, matmul in (("tf32", "high"), ("float32", "highest")):
            models.compute_in(precision, model)
            assert torch.get_float32_matmul_precision() == matmul
            allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            assert allowed == (precision == "tf32",) * 2
    finally:
        models.compute_in("float32", model)


def test_layers_of_four_axes_lie_channels_last():
    for name, data in (("cnn", SHAPES["mnist"]), ("preactresnet18", SHAPES["cifar10"])):
        model = models.build(name, **data.network)
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)


@pytest.mark.parametrize("compiler", [True, False])
def test_a_compiled_network_trains_as_it_is_written(write_study, compiler):
    """In a process of its own, since compilation changes settings of the process; shapes change as samples stop."""
    if compiler and not shutil.which("g++"):
        pytest.skip("there is no g++")
    code = """
import sys
import torch
from torch.utils.flop_counter import FlopCounterMode
from sat_core.study import Study
from sat_core.runs.check import check
from sat_core.runs.trainer import Trainer

found = []
for path in sys.argv[1:]:
    trainer = Trainer(Study(path).run("digits/cnn/psat/eps0.3/seed0"), torch.device("cpu"))
    steps = trainer.steps()
    for _ in range(3):
        next(steps)
    found.append((trainer.model.state_dict(), trainer.sums))
assert list(found[0][0]) == list(found[1][0])
assert all(torch.allclose(found[0][0][k], found[1][0][k], atol=1e-5) for k in found[0][0])
assert 0 < found[0][1][1] == found[1][1][1] < 3 * 64 * trainer.attack.steps, [sums for _, sums in found]
assert "forward" not in vars(trainer.average.module.network)  # else the average would be the network in training
print("compiled graphs:", torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""
    compiled = tiny_with(training={"compile": True, "average": "ema"})
    studies = [str(write_study(content, f"study{i}")) for i, content in enumerate((TINY, compiled))]
    environment = os.environ | ({} if compiler else {"CXX": "/nowhere/g++", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"})
    command = [sys.executable, "-c", code, *studies]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == (2 if compiler else 0)  # the attack and the step, for whole batches
