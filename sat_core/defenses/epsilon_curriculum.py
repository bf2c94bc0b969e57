"""Curriculum on the radius, one of the older notions of difficulty: ``psi(x + delta) = |delta|_inf / epsilon``."""

from sat_core.attacks import Perturbation, cross_entropy, uniform_start
from sat_core.defenses import Batch, SelfPaced


class EpsilonCurriculum(SelfPaced):
    """``psi <= lambda`` is a ball, so the constraint is met exactly, by PGD with radius lambda epsilon."""

    def perturb(self, batch: Batch) -> Perturbation:
        return in_ball(batch, self.curriculum(batch.epoch))


def in_ball(batch: Batch, limit: float, within_a_step: bool = False) -> Perturbation:
    """Madry's attack with radius and step size times ``limit``; it may start no further away than a step."""
    epsilon, step_size = limit * batch.attack.epsilon, limit * batch.attack.step_size
    start = uniform_start(batch.x, min(epsilon, step_size) if within_a_step else epsilon)
    return batch.attack(batch.model, batch.x, cross_entropy(batch.y), start=start, epsilon=epsilon, step_size=step_size)
