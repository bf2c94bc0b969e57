"""The curriculum, and psi_P's range."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_core.difficulty import Curriculum, probability_gap


def test_steps_rise_by_equal_parts_at_their_epochs():
    mnist = Curriculum(kind="steps", epochs=[30, 45, 60])
    assert [mnist(e) for e in (0, 29, 30, 44, 45, 60, 69)] == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 1, 1])


def test_linear_rises_between_its_epochs():
    cifar = Curriculum(kind="linear", epochs=[30, 70], stop=0.4)
    assert [cifar(e) for e in (0, 30, 50, 70, 99)] == pytest.approx([0, 0, 0.2, 0.4, 0.4])


@pytest.mark.parametrize(
    ("curriculum", "message"),
    [
        (Curriculum(kind="steps", epochs=[10]), "beyond the last epoch"),
        (Curriculum(kind="steps", epochs=[3, 3]), "must increase"),
        (Curriculum(kind="linear", epochs=[3]), "two epochs"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(curriculum, message):
    with pytest.raises(ValueError, match=message):
        curriculum.check(10)


@given(st.integers(0, 10**6), st.floats(0.1, 1e4))
def test_psi_never_exceeds_one_so_lambda_one_never_stops(seed, scale):
    torch.manual_seed(seed)
    psi = probability_gap(scale * torch.randn(50, 10), torch.randint(10, (50,)))
    assert psi.min() >= -1 and psi.max() <= 1
