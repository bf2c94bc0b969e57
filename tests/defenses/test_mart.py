"""MART against its formula restated term by term."""

import pytest
import torch
from defenses.restated import (
    EPOCHS,
    defense,
    differences,
    in_ball,
    make_batch,
    near,
    perturbed,
    plain_pgd,
    probabilities,
)

from sat_core.attacks import normal_start
from sat_core.defenses import build
from sat_core.errors import ConfigError


@pytest.mark.parametrize(("beta", "floor"), [(6, 0), (6, 1e-4), (0, 0), (2.5, 0.01)])
def test_the_loss_is_its_formula_in_float64(beta, floor):
    batch = make_batch()
    found, expected = near(batch), 0
    for i, label in enumerate(batch.y.tolist()):
        p, q = probabilities(batch.model, batch.x[i]), probabilities(batch.model, found.x[i])
        rival = max((q[k] for k in range(5) if k != label), key=lambda value: value.item())
        divergence = sum(p[k] * (p[k].log() - q[k].log()) for k in range(5))
        expected += (-q[label].log() - (1 + floor - rival).log() + beta * divergence * (1 - p[label])) / 9
    loss = defense("mart", beta=beta, floor=floor).outer_loss(batch, found)
    assert differences(batch, loss, expected) <= 1e-9


def test_x_prime_maximises_the_cross_entropy_from_a_little_noise():
    batch = make_batch()
    torch.manual_seed(3)
    expected = plain_pgd(batch, normal_start(batch.x), lambda p, i: -p[batch.y[i]].log())
    found = perturbed(batch, defense("mart"))
    assert (found.x - expected).abs().max() <= 1e-9 and in_ball(batch, found.x)


@pytest.mark.parametrize("options", [{"beta": -1}, {"floor": -1e-4}, {"gamma": 1}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match="options of defense 'mart'"):
        build("mart", options, EPOCHS)
