"""Estimates of cost, against sums done by hand."""

import pytest

from sat_core.__main__ import main
from sat_core.runs.plan import STANDARD_PASSES, cost, estimate, forward_flops


def test_operations_and_parameters_of_the_small_network_are_those_counted_by_hand(tiny):
    run = next(iter(tiny.runs))
    convolutions = 16 * 9 * 1 * 64 + 32 * 9 * 16 * 16 + 64 * 9 * 32 * 4
    weights = 16 * 9 + 32 * 9 * 16 + 64 * 9 * 32 + 256 * 10
    assert forward_flops(run) == (2 * (convolutions + 256 * 10), weights + 16 + 32 + 64 + 10)


def test_a_run_costs_its_steps_times_its_images(tiny):
    run = next(iter(tiny.runs))  # two epochs, PGD of two steps, a tenth held out
    passes = 1437 * (0.9 * (2 * 2 + 3) + 0.1 * (2 * 2 + 2))
    spent = cost(run, 10.0, 7)
    assert spent["training"] == pytest.approx(10 * passes * 2)
    assert spent["judging"] == 10 * 12 * STANDARD_PASSES
    assert spent["bytes"] == 4 * 7 * 7
    fewer = run.model_copy(update={"data": run.data.model_copy(update={"train_images": 100})})
    assert cost(fewer, 10.0, 7)["training"] == pytest.approx(spent["training"] * 100 / 1437)


def test_the_plan_adds_up_and_refuses_a_rate_that_is_none(tiny, capsys):
    last = estimate(tiny, 1e-6).splitlines()[-2].split()
    assert last[:2] == ["all", "2"] and float(last[2]) > 0
    assert main(["plan", "--study", str(tiny.path), "--tflops", "0"]) != 0
    assert "error: --tflops 0: a number above 0 is needed" in capsys.readouterr().err
