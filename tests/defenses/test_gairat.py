"""GAIRAT against its algorithm and weights restated sample by sample; before its time it is Madry's."""

from math import tanh

import pytest
import torch
from defenses.restated import EPOCHS, defense, differences, in_ball, make_batch, perturbed, plain_pgd, same

from sat_core.attacks import uniform_start
from sat_core.defenses import build
from sat_core.errors import ConfigError


@pytest.mark.parametrize("lam", [-1.0, 0.0, 2.0])
def test_weights_and_loss_are_their_formula_in_float64(lam):
    batch = make_batch(n=24)
    kappa = [0] * 24

    def count(p, i):
        kappa[i] += int(max(range(5), key=lambda k: p[k]) == batch.y[i])
        return True

    torch.manual_seed(3)
    start = uniform_start(batch.x, 0.2)
    x = plain_pgd(batch, start, lambda p, i: -p[batch.y[i]].log(), count)
    gairat = defense("gairat", lam=lam, begin=0)
    found = perturbed(batch, gairat)
    assert (found.x - x).abs().max() <= 1e-9 and in_ball(batch, found.x)
    assert len(set(kappa)) > 2 and (found.steps == 6).all()

    weights = [(1 + tanh(lam + 5 * (1 - 2 * k / 6))) / 2 for k in kappa]
    p = batch.model(found.x).softmax(1)
    expected = -sum(weights[i] * p[i, batch.y[i]].log() for i in range(24)) / sum(weights)
    assert differences(batch, gairat.outer_loss(batch, found), expected) <= 1e-9


def test_before_its_time_it_is_madrys_bit_for_bit():
    batch = make_batch(epoch=3, dtype=torch.float32)
    gairat, madry = defense("gairat", begin=4), defense("madry")
    ours, theirs = perturbed(batch, gairat), perturbed(batch, madry)
    assert same(ours, theirs)
    assert torch.equal(gairat.outer_loss(batch, ours), madry.outer_loss(batch, theirs))
    assert ours.weights is None is not perturbed(make_batch(epoch=4), gairat).weights


def test_its_attack_is_madrys_bit_for_bit_at_all_times():
    batch = make_batch(epoch=8, dtype=torch.float32)
    assert same(perturbed(batch, defense("gairat", begin=4)), perturbed(batch, defense("madry")))


def test_a_large_lambda_makes_all_weights_alike():
    batch = make_batch()
    gairat, madry = defense("gairat", lam=50, begin=0), defense("madry")
    found = perturbed(batch, gairat)
    assert differences(batch, gairat.outer_loss(batch, found), madry.outer_loss(batch, found)) <= 1e-9


def test_where_every_weight_is_next_to_nothing_they_still_compare():
    batch = make_batch(dtype=torch.float32)
    gairat = defense("gairat", lam=-10, begin=0)
    found = perturbed(batch, gairat)
    assert (found.weights > 0).all() and gairat.outer_loss(batch, found).isfinite()


def test_it_begins_where_the_authors_begin():
    assert build("gairat", {}, 120).begin == 59


@pytest.mark.parametrize("options", [{"begin": 11}, {"begin": 1.5}, {"lam": "inf"}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match="options of defense 'gairat'"):
        build("gairat", options, EPOCHS)
