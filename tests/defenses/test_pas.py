"""PAS: its schedule restated, the curriculum on the radius that it is, and Madry's where the radius is whole."""

from dataclasses import replace
from math import cos, pi

import pytest
import torch
from defenses.restated import EPOCHS, defense, in_ball, make_batch, perturbed, plain_pgd, same

from sat_core.attacks import PGD, uniform_start
from sat_core.defenses import build
from sat_core.errors import ConfigError


@pytest.mark.parametrize(("peak", "ends"), [(2, [10]), (1.5, [10]), (2, [4]), (2, [5, 8, 10]), (0.5, [6]), (2, [5, 7])])
def test_the_schedule_is_its_formula(peak, ends):
    pas = build("pas", {"peak": peak, "ends": ends}, 10)
    for epoch in range(10):
        expected = peak
        for first, last in zip([0, *ends], ends, strict=False):
            if first <= epoch < last:
                expected = peak * (1 - cos(pi * (epoch - first) / (last - first))) / 2
        assert pas.curriculum_value(epoch) == pytest.approx(min(expected, 1), abs=1e-12)


def test_on_cifar10_the_radius_is_whole_from_halfway_on():
    pas = build("pas", {}, 200)
    assert [pas.curriculum_value(epoch) for epoch in (0, 50, 100, 199)] == pytest.approx([0, 1 - cos(pi / 4), 1, 1])


def test_its_attack_is_pgd_in_a_smaller_ball_that_starts_within_a_step():
    batch, pas = make_batch(epoch=2), defense("pas")
    share = pas.curriculum_value(2)
    assert 0.1 < share < 0.9
    torch.manual_seed(3)
    start = uniform_start(batch.x, share * 0.05)
    small = replace(batch, attack=PGD(share * 0.2, share * 0.05, 6))
    expected = plain_pgd(small, start, lambda p, i: -p[batch.y[i]].log())
    found = perturbed(batch, pas)
    assert (found.x - expected).abs().max() <= 1e-9 and in_ball(batch, found.x, share)


def test_at_the_very_beginning_nothing_is_attacked():
    batch = make_batch(epoch=0)
    assert torch.equal(perturbed(batch, defense("pas")).x, batch.x)


def test_where_the_radius_is_whole_it_is_madrys_bit_for_bit_but_for_the_start():
    batch = make_batch(epoch=7, dtype=torch.float32)
    assert same(perturbed(batch, defense("pas", start="ball")), perturbed(batch, defense("madry")))
    assert not same(perturbed(batch, defense("pas")), perturbed(batch, defense("madry")))


def test_it_is_the_epsilon_curriculum_of_the_same_lambda_bit_for_bit():
    batch, pas = make_batch(epoch=2, dtype=torch.float32), defense("pas", start="ball")
    limit = {"kind": "steps", "epochs": [0], "stop": pas.curriculum_value(2)}
    assert same(perturbed(batch, pas), perturbed(batch, defense("epsilon_curriculum", curriculum=limit)))


@pytest.mark.parametrize("options", [{"ends": []}, {"ends": [0, 5]}, {"ends": [6, 5]}, {"ends": [11]}, {"peak": 0}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match="options of defense 'pas'"):
        build("pas", options, EPOCHS)
