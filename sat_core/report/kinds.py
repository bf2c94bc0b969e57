"""The kinds of figures: what each shows, and which results it is drawn from. Imports nothing heavy."""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of figure. ``stage``: what was done to each of its runs.

    ``alt`` says what is to be seen to who cannot see it; ``caption`` how to read it. ``on_request``: drawn only where
    its runs have planes of that kind, by ``landscape.reattack``, or it is asked for by name.
    """

    stage: str
    title: str
    alt: str
    caption: str
    on_request: bool = False


SURFACES = "Surfaces above contours of the loss, side by side for each defense, one block an epsilon."
READING = (
    "All panels of an epsilon share one scale, and one grid around the selected weights (the cross). Above each stand "
    "the accuracies, the loss and the largest Hessian eigenvalue on the images that were used: a plane through a poor "
    "network may look flat, and a trivial one, marked in red, is the flattest of all."
)

FIGURES = {
    "tradeoff": Kind(
        "evaluate",
        "Clean against robust accuracy",
        "Scatter plot of AutoAttack accuracy over clean accuracy, one panel an epsilon, one marker a defense.",
        "A marker a run, on the test images; up and to the right is better. Hollow: what others have published of the "
        "same dataset, network and epsilon. Ringed in red: trivial classifiers. Of two rows the upper one has the runs "
        "that are at least half as robust as the best, in the dotted frame of the lower one.",
    ),
    "curves": Kind(
        "train",
        "Training",
        "Line charts over the epochs, one line a run: loss, clean and robust validation accuracy, lambda, share of "
        "samples stopped, and attack steps used.",
        "Loss: what the defense minimises, so defenses differ in kind (CAT adds a margin, which may be negative). "
        "Validation accuracy: clean, and under the PGD of validation. lambda: the difficulty that the curriculum "
        "allows; for dynamic, the threshold that it calls c. Stopped: the share of samples whose attack ended before "
        "its last step; below it the mean number of steps a sample. Dotted: a training that is not finished.",
    ),
    "examples": Kind(
        "evaluate",
        "Adversarial examples",
        "Two test images, and beside each, one column a defense: the perturbed image, the predictions on the clean and "
        "on the perturbed image, and the perturbation.",
        "The PGD of the training, never stopped, on the first test images of two classes; first seed. Below each "
        "perturbed image: the prediction on the clean image → on the perturbed one, in red where the latter is wrong. "
        "Perturbations: grey is none, black and white are minus and plus epsilon.",
    ),
    "curvature": Kind(
        "curvature",
        "Curvature of the loss",
        "Line charts of the largest Hessian eigenvalue and, where they were measured, of trace and relative flatness, "
        "over the epochs and against epsilon, with the adversarial accuracy on the same images below.",
        "The largest eigenvalue of the Hessian, in the weights, of the mean cross entropy at adversarial examples of a "
        "fixed sample of images. Right: at the selected weights, a marker a run, the line through the means over "
        "seeds. Ringed in red: a trivial network, which is flat because it has learnt nothing, and is in no mean.",
    ),
    "curvature-accuracy": Kind(
        "curvature",
        "Curvature against robust accuracy",
        "Scatter plots of the largest Hessian eigenvalue over the adversarial accuracy on the same images, one panel "
        "an epsilon, one line a run.",
        "A line is a run's way through its training, a dot each snapshot; the marker is the selected network, ringed "
        "in red where it is trivial. Both axes are of adversarial examples of one fixed sample of images. A flat loss "
        "says something only where the accuracy is the same: a network that has learnt nothing is the flattest.",
    ),
    "spectrum": Kind(
        "curvature",
        "Spectrum of the Hessian",
        "Line charts of the density of the Hessian's eigenvalues, logarithmic, one panel an epsilon, one line a "
        "defense.",
        "At the selected weights of the first seed, by Lanczos quadrature, smoothed with a Gaussian kernel. Dotted in "
        "red: a trivial network, all of whose curvature is near 0 because it has learnt nothing.",
    ),
    "landscape": Kind(
        "landscape",
        "Loss landscape: random directions",
        SURFACES,
        f"Along two random directions, scaled filter by filter. {READING}",
    ),
    "landscape-hessian": Kind(
        "landscape",
        "Loss landscape: directions of most curvature",
        SURFACES,
        f"Along the two top eigenvectors of the Hessian. {READING}",
    ),
    "landscape-input": Kind(
        "landscape",
        "Loss landscape: around the images",
        SURFACES,
        "The weights stay and the images move: along the sign of the loss's gradient, and along random signs, in units "
        f"of epsilon. {READING}",
    ),
    "landscape-pair": Kind(
        "landscape",
        "Loss landscape: a pair for a slide",
        "Two surfaces of the loss side by side, under one camera and light.",
        "The first and the last defense whose landscapes the table asks for, at its largest epsilon, along two random "
        "directions that are scaled filter by filter. Both have one scale, camera and light.",
    ),
    "landscape-reattacked": Kind(
        "landscape",
        "Loss landscape: random directions, attacked anew",
        SURFACES,
        f"As the first, with new adversarial examples at every point. {READING}",
        on_request=True,
    ),
}
"""In the order in which a report shows them."""
