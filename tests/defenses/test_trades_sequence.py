"""TRADES with x and x' in one batch: another loss where batch norm sees it, the same where there is none."""

import copy

import pytest
import torch
from defenses.restated import EPOCHS, defense, differences, make_batch, near, perturbed, same

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
