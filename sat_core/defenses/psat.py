"""P-SAT (Sitawarin et al. 2021): PGD stops, sample by sample, once psi_P exceeds lambda; then cross entropy on x'.

As in the authors' earlier code, a stopped sample keeps the iterate at which it was found above lambda.
"""

from sat_core.attacks import Perturbation, cross_entropy, uniform_start
from sat_core.config import Training
from sat_core.defenses import Batch, Defense
from sat_core.difficulty import Curriculum, probability_gap


class PSAT(Defense):
    """Self-paced adversarial training on the probability gap; with lambda = 1 it is Madry's, bit for bit."""

    curriculum: Curriculum

    def check(self, training: Training) -> None:
        self.curriculum.check(training.epochs)

    def curriculum_value(self, epoch: int) -> float:
        return self.curriculum(epoch)

    def perturb(self, batch: Batch) -> Perturbation:
        limit = self.curriculum(batch.epoch)
        return batch.attack(
            batch.model,
            batch.x,
            cross_entropy(batch.y),
            start=uniform_start(batch.x, batch.attack.epsilon),
            keep_going=lambda iterate: probability_gap(iterate.logits, batch.y[iterate.rows]) <= limit,
        )
