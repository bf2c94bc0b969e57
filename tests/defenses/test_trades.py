"""TRADES: its attack restated; and with x and x' in one batch another loss, but only where batch norm sees it."""

import copy

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

BOTH = {"beta": 6, "sequence": "concatenated"}


def expected(batch, z, z_adv):
    """TRADES from logits, term by term."""
    p, q, total = z.softmax(1), z_adv.softmax(1), 0
    for i in range(len(z)):
        total += -p[i, batch.y[i]].log() / len(z)
        total += sum(6 * p[i, c] * (p[i, c].log() - q[i, c].log()) / len(z) for c in range(5))
    return total


def test_x_prime_maximises_the_divergence_of_its_prediction_from_the_clean_one():
    batch = make_batch()
    torch.manual_seed(3)
    start = normal_start(batch.x)
    batch.model.eval()
    with torch.no_grad():
        clean = [probabilities(batch.model, x) for x in batch.x]

    def divergence(q, i):
        return sum(p * (p.log() - other.log()) for p, other in zip(clean[i], q, strict=True))

    found = perturbed(batch, defense("trades", beta=6))
    assert (found.x - plain_pgd(batch, start, divergence)).abs().max() <= 1e-9 and in_ball(batch, found.x)


def test_without_batch_norm_both_sequences_are_the_same():
    batch = make_batch()
    found = near(batch)
    ours, theirs = (defense("trades", **options).outer_loss(batch, found) for options in (BOTH, {"beta": 6}))
    assert differences(batch, ours, theirs) <= 1e-12


def test_with_batch_norm_the_statistics_are_those_of_both_halves():
    batch = make_batch(norm=True)
    found = near(batch)
    whole = copy.deepcopy(batch.model)
    loss = defense("trades", **BOTH).outer_loss(batch, found)
    conv, norm, *rest = batch.model
    features = conv(torch.cat([batch.x, found.x]))
    mean, var = features.mean(dim=(0, 2, 3)), features.var(dim=(0, 2, 3), unbiased=False)
    features = (features - mean[:, None, None]) / (var[:, None, None] + norm.eps).sqrt()
    features = features * norm.weight[:, None, None] + norm.bias[:, None, None]
    for layer in rest:
        features = layer(features)
    assert differences(batch, loss, expected(batch, features[:9], features[9:])) <= 1e-9
    separate = expected(batch, whole(batch.x), whole(found.x))
    assert (loss - separate).abs() > 1e-3
    assert norm.num_batches_tracked == 1 and whole[1].num_batches_tracked == 2


def test_the_attack_is_the_same_in_both():
    batch = make_batch()
    assert same(perturbed(batch, defense("trades", **BOTH)), perturbed(batch, defense("trades", beta=6)))


def test_another_word_is_refused():
    with pytest.raises(ConfigError, match="options of defense 'trades': sequence"):
        build("trades", {"beta": 6, "sequence": "parallel"}, EPOCHS)
