"""What the public functions do with networks and inputs that they were not made for: right, or a sentence."""

import os

import pytest
import torch
import torch.nn.functional as F
from helpers import Wrapped
from torch import nn

from sat_core import PGD, Objective, autoattack, cross_entropy, lambda_max, uniform_start
from sat_core.difficulty import capture, parametric_layers
from sat_core.runs.files import HOST, atomic

ATTACK = PGD(0.1, 0.025, 3)


class Square(torch.autograd.Function):
    """An operator without a forward derivative."""

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context, gradient):
        (x,) = context.saved_tensors
        return 2 * x * gradient


class Squared(nn.Module):
    def __init__(self, square):
        super().__init__()
        self.first, self.last, self.square = nn.Linear(16, 8), nn.Linear(8, 4), square

    def forward(self, x):
        return self.last(self.square(self.first(x.flatten(1))))


def test_the_hessian_of_an_operator_without_forward_derivative_is_the_same():
    torch.manual_seed(0)
    plain, special = Squared(torch.square).eval(), Squared(Square.apply).eval()
    special.load_state_dict(plain.state_dict())
    x, y = torch.rand(12, 1, 4, 4), torch.randint(4, (12,))
    expected, found = (lambda_max(Objective(model, x, y)).values[0] for model in (plain, special))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("conv", [{"dilation": 2}, {"padding": "same"}, {"stride": 2, "padding": 1}], ids=str)
def test_gradient_norms_of_unusual_convolutions_are_those_of_autograd(conv):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, **conv), nn.Flatten(), nn.LazyLinear(3))
    x, y = torch.rand(5, 2, 8, 8), torch.randint(3, (5,))
    model(x)
    with capture(*parametric_layers(model), deltas=True) as seen:
        F.cross_entropy(model(x), y, reduction="sum").backward()
    norms = [
        sum((g**2).sum() for g in torch.autograd.grad(F.cross_entropy(model(a[None]), b[None]), model.parameters()))
        for a, b in zip(x, y, strict=True)
    ]
    assert torch.allclose(seen.gradient_norm_squared(), torch.stack(norms), rtol=1e-4)


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.InstanceNorm2d(2, affine=True)], ids=str)
def test_a_layer_whose_gradient_norm_is_not_known_is_told(layer):
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(128, 3))
    with capture(*parametric_layers(model), deltas=True) as seen:
        model(torch.rand(5, 2, 8, 8)).sum().backward()
    with pytest.raises(ValueError, match="no per-sample gradient norm for"):
        seen.gradient_norm_squared()


def test_a_layer_that_is_met_twice_in_one_pass_is_told():
    shared = nn.Linear(16, 16)
    model = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared)
    with capture(shared, deltas=True), pytest.raises(ValueError, match="is met twice in one pass"):
        model(torch.rand(3, 1, 4, 4)).sum().backward()


def test_a_pass_that_came_to_nothing_leaves_nothing_behind():
    """Such as one for whose norms a GPU had no memory: what is done instead is another pass."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    one, other = torch.rand(2, 4, 1, 4, 4)
    norms = []
    for passes in ((one, other), (other,)):
        with capture(*parametric_layers(model), deltas=True) as seen:
            for x in passes:
                model(x).sum().backward()
            norms.append(seen.gradient_norm_squared())
    assert torch.equal(*norms)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, x, y: ATTACK(m, 255 * x, cross_entropy(y), start=x), "images must lie in"),
        (lambda m, x, y: ATTACK(m, x, F.cross_entropy, start=x), "not with labels: pass cross_entropy"),
        (lambda m, x, y: ATTACK(m, x, lambda logits, rows: logits.sum(), start=x), "a value a sample"),
        (lambda m, x, y: ATTACK(m, x, cross_entropy(y), start=x, keep_going=lambda it: it.loss), "answers bool"),
        (lambda m, x, y: PGD(8, 2, 10), "epsilon is in pixel units"),
        (lambda m, x, y: autoattack(m, x, y, epsilon=8), "epsilon 8 is not in"),
        (lambda m, x, y: autoattack(m, x[:0], y[:0], epsilon=0.1), "0 images need labels"),
        (lambda m, x, y: autoattack(m, x, y[:, None], epsilon=0.1), r"6 images need labels int64 \(6,\)"),
        (lambda m, x, y: autoattack(m, x, y.int(), epsilon=0.1), "not torch.int32"),
        (lambda m, x, y: autoattack(m, x, y + 4, epsilon=0.1), "are not those of 4 classes"),
        (lambda m, x, y: autoattack(Wrapped(m, lambda z: (z, z)), x, y, epsilon=0.1), "gives tuple, not a tensor"),
        (lambda m, x, y: autoattack(Wrapped(m, lambda z: z * torch.nan), x, y, epsilon=0.1), "are not finite"),
        (lambda m, x, y: uniform_start(x, torch.full((6,), 0.1)), r"one a sample, \(6, 1, 1, 1\), not \(6,\)"),
        (lambda m, x, y: ATTACK(m, x, cross_entropy(y), start=x, step_size=torch.ones(6)), "step_size is a number, or"),
        (lambda m, x, y: PGD(0.1, 0.1, 1, "evall"), "neither eval nor train"),
        (lambda m, x, y: Objective(m.train(), x, y), "is in train mode"),
        (lambda m, x, y: Objective(m, 255 * x, y), "images must lie in"),
    ],
)
def test_what_would_give_a_wrong_number_gives_a_sentence(call, message):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval()
    with pytest.raises(ValueError, match=message):
        call(model, torch.rand(6, 1, 4, 4), torch.randint(4, (6,)))


def test_what_a_killed_writer_left_is_swept_up_and_that_of_a_living_one_is_not(tmp_path):
    path = tmp_path / "run.json"
    dead, alive = (tmp_path / f".run.json.{HOST}.{process}.1.tmp" for process in (2**22 - 1, os.getppid()))
    for litter in (dead, alive):
        litter.write_text("half a")
    with atomic(path) as file:
        file.write("whole")
    assert path.read_text() == "whole" and not dead.exists() and alive.exists()
