"""SCORE, both forms, against its formula restated term by term."""

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

from sat_core.attacks import normal_start, uniform_start
from sat_core.defenses import build
from sat_core.errors import ConfigError


def square(p, q):
    return sum((a - b) ** 2 for a, b in zip(p, q, strict=True))


def one_hot(label):
    return [float(k == label) for k in range(5)]


@pytest.mark.parametrize(("form", "clip", "used"), [("at", None, 0.4), ("trades", None, 0.3), ("trades", 0, 0)])
@pytest.mark.parametrize("beta", [6, 0])
def test_the_loss_is_its_formula_in_float64(form, clip, used, beta):
    batch = make_batch()
    found, expected = near(batch), 0
    spared = [1 - used, *[used / 4] * 4]
    bound = square(spared, [1, 0, 0, 0, 0])
    for i, label in enumerate(batch.y.tolist()):
        p, q = probabilities(batch.model, batch.x[i]), probabilities(batch.model, found.x[i])
        error = square(q, one_hot(label)) if form == "at" else square(p, one_hot(label)) + beta * square(p, q)
        expected += max(error - bound, 0 * error) / 9
    loss = defense("score", form=form, clip=clip, beta=beta).outer_loss(batch, found)
    assert differences(batch, loss, expected) <= 1e-9


def test_what_fits_well_is_spared():
    batch = make_batch()
    at = {clip: defense("score", form="at", clip=clip).outer_loss(batch, near(batch)) for clip in (0, 0.4, 1)}
    assert at[0] > at[0.4] > at[1] >= 0


@pytest.mark.parametrize("form", ["at", "trades"])
def test_x_prime_maximises_the_squared_error(form):
    batch = make_batch()
    torch.manual_seed(3)
    start = uniform_start(batch.x, 0.2) if form == "at" else normal_start(batch.x).clamp(0, 1)
    batch.model.eval()
    with torch.no_grad():
        clean = [probabilities(batch.model, x) for x in batch.x]
    goal = [one_hot(label) for label in batch.y.tolist()] if form == "at" else clean
    expected = plain_pgd(batch, start, lambda p, i: square(p, goal[i]))
    found = perturbed(batch, defense("score", form=form))
    assert (found.x - expected).abs().max() <= 1e-9 and in_ball(batch, found.x)


@pytest.mark.parametrize("options", [{"form": "mart"}, {"clip": -0.1}, {"beta": -1}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match="options of defense 'score'"):
        build("score", options, EPOCHS)
