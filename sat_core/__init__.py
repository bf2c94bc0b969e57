"""Self-paced adversarial training (SAT): train, attack, judge, and rebuild the paper's tables.

Reading order: :mod:`sat_core.attacks` (PGD with a stopping rule), :mod:`sat_core.difficulty` (psi and the
curriculum), :mod:`sat_core.defenses` (one file a method), :mod:`sat_core.training`, :mod:`sat_core.evaluation`.
Images are float32 NCHW in [0, 1] everywhere; epsilon is in the same (pixel) units; logits are (N, classes).
"""

__version__ = "0.1.0"
