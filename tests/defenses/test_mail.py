"""MAIL-AT against its formula restated sample by sample; before its time it is Madry's."""

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
    same,
)

from sat_core.attacks import normal_start
from sat_core.defenses import build
from sat_core.errors import ConfigError


@pytest.mark.parametrize(("slope", "bias", "factor"), [(10, -0.5, None), (2, 0, None), (10, -0.5, 3)])
def test_the_loss_is_its_formula_in_float64(slope, bias, factor):
    batch, mail = make_batch(), defense("mail", slope=slope, bias=bias, factor=factor, begin=0)
    found, weights, losses = near(batch), [], []
    for i, label in enumerate(batch.y.tolist()):
        p = probabilities(batch.model, found.x[i])
        margin = p[label].item() - max(p[k].item() for k in range(5) if k != label)
        weights.append(1 / (1 + torch.tensor(slope * (margin - bias), dtype=torch.float64).exp()))
        losses.append(-p[label].log())
    total = sum(weights) if factor is None else 9 / factor
    expected = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / total
    assert differences(batch, mail.outer_loss(batch, found), expected) <= 1e-9


def test_x_prime_maximises_the_cross_entropy_from_a_little_noise():
    batch = make_batch()
    torch.manual_seed(3)
    expected = plain_pgd(batch, normal_start(batch.x), lambda p, i: -p[batch.y[i]].log())
    found = perturbed(batch, defense("mail"))
    assert (found.x - expected).abs().max() <= 1e-9 and in_ball(batch, found.x)


def test_before_its_time_it_is_madrys_bit_for_bit():
    batch = make_batch(epoch=3, dtype=torch.float32)
    mail, madry = defense("mail", begin=4, start="uniform"), defense("madry")
    ours, theirs = perturbed(batch, mail), perturbed(batch, madry)
    assert same(ours, theirs)
    assert torch.equal(mail.outer_loss(batch, ours), madry.outer_loss(batch, theirs))
    later = make_batch(epoch=4, dtype=torch.float32)
    assert not torch.equal(mail.outer_loss(later, ours), madry.outer_loss(later, theirs))


def test_it_begins_where_the_authors_begin():
    assert build("mail", {}, 100).begin == 75


@pytest.mark.parametrize("options", [{"begin": 11}, {"slope": 0}, {"factor": 0}, {"start": "clean"}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match="options of defense 'mail'"):
        build("mail", options, EPOCHS)
