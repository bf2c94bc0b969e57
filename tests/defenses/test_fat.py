"""FAT against its algorithm restated sample by sample, and its special cases."""

import pytest
import torch
from defenses.restated import EPOCHS, defense, in_ball, make_batch, perturbed, plain_pgd, same

from sat_core import attacks
from sat_core.attacks import uniform_start
from sat_core.defenses import build
from sat_core.errors import ConfigError

QUIET = {"omega": 0}


@pytest.mark.parametrize("tau", [0, 1, 2])
def test_a_sample_stops_when_it_errs_after_tau_mistakes(tau):
    batch = make_batch(n=24)
    left = dict.fromkeys(range(24), tau)

    def may_go_on(p, i):
        if max(range(5), key=lambda k: p[k]) == batch.y[i]:
            return True
        left[i] -= 1
        return left[i] >= 0

    torch.manual_seed(3)
    start = uniform_start(batch.x, 0.2)
    expected = plain_pgd(batch, start, lambda p, i: -p[batch.y[i]].log(), may_go_on)
    found = perturbed(batch, defense("fat", tau=tau, rises=[], **QUIET))
    assert (found.x - expected).abs().max() <= 1e-9
    assert 0 < (found.steps < 6).sum() < 24
    assert in_ball(batch, found.x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_tau_0_and_no_noise_it_is_psat_at_lambda_0_bit_for_bit(dtype):
    batch = make_batch(n=40, dtype=dtype)
    paced = defense("psat", curriculum={"kind": "steps", "epochs": [0], "start": 0, "stop": 0})
    fat = defense("fat", rises=[], **QUIET)
    ours, theirs = perturbed(batch, fat), perturbed(batch, paced)
    assert same(ours, theirs) and 0 < (ours.steps < 6).sum() < 40
    assert torch.equal(fat.outer_loss(batch, ours), paced.outer_loss(batch, theirs))


def test_with_tau_as_large_as_the_number_of_steps_it_is_madrys_bit_for_bit():
    batch = make_batch(dtype=torch.float32)
    assert same(perturbed(batch, defense("fat", tau=6, rises=[], **QUIET)), perturbed(batch, defense("madry")))


def test_tau_rises_where_the_authors_have_it_rise():
    fat = build("fat", {}, 120)
    assert [fat.curriculum_value(epoch) for epoch in (0, 49, 50, 89, 90, 119)] == [0, 0, 1, 1, 2, 2]
    assert [build("fat", {"tau": 1, "rises": [3]}, 8).curriculum_value(e) for e in (2, 3)] == [1, 2]


def test_the_noise_is_within_the_ball_and_can_be_had_again():
    batch = make_batch(n=24)
    loud = defense("fat", rises=[], omega=0.05)
    found = perturbed(batch, loud)
    assert in_ball(batch, found.x) and same(found, perturbed(batch, loud))
    assert not torch.equal(found.x, perturbed(batch, defense("fat", rises=[], **QUIET)).x)


def test_a_clean_start_draws_nothing():
    batch = make_batch()
    clean = defense("fat", start="clean", **QUIET)
    assert same(perturbed(batch, clean, seed=1), perturbed(batch, clean, seed=2))


@pytest.mark.parametrize("options", [{"rises": [5, 3]}, {"rises": [11]}, {"omega": -1}, {"tau": -1}, {"start": "far"}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match="options of defense 'fat'"):
        build("fat", options, EPOCHS)


def test_it_does_not_matter_how_long_a_stopped_sample_stays_in_the_batch(monkeypatch):
    batch, fat = make_batch(n=40), defense("fat", tau=1, rises=[], **QUIET)
    alone = perturbed(batch, fat)
    monkeypatch.setitem(attacks.PARTS, "cpu", 2)
    assert same(alone, perturbed(batch, fat))
