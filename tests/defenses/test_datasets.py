"""Every dataset file serves every defense, at its own number of epochs and at another."""

import pytest
from helpers import REPOSITORY

from sat_core import defenses
from sat_core.runs.check import check
from sat_core.study import Study, defense_names

DATASETS = sorted(path.stem for path in (REPOSITORY / "config/datasets").glob("*.yaml"))
PROTOCOL = {
    **dict.fromkeys(("cifar10", "cifar10-images", "cifar100", "imagenette"), ([30, 70], 80, [40, 60, 80])),
    **dict.fromkeys(("mnist", "fashion"), ([30, 45, 60], 30, [40, 50, 60])),
    "mnist-10k": ([9, 13, 17], 9, [11, 14, 17]),
    "mnist-small": ([13, 19, 26], 13, []),
    "cifar10-small": ([6, 14], 16, []),
    "digits": ([13, 19, 26], 13, [20, 26]),
}
"""P-SAT's curriculum, Dynamic's horizon and the learning rate's milestones, in epochs, as the protocols have them."""


@pytest.mark.parametrize("epochs", [8, 2])
@pytest.mark.parametrize("dataset", DATASETS)
def test_another_number_of_epochs_alone_is_a_study_of_every_defense(write_study, dataset, epochs):
    model = "resnet34" if dataset == "imagenette" else "preactresnet18" if "cifar" in dataset else "cnn"
    table = {"dataset": dataset, "models": [model], "defenses": sorted(defense_names()), "epsilons": ["8/255"]}
    fewer = {"set": {"training": {"epochs": epochs}}}
    study = Study(write_study({"tables": {"one": table}, "overrides": [fewer]}))
    check(study, study.runs)


@pytest.mark.parametrize("dataset", DATASETS)
def test_shares_mean_the_epochs_of_the_protocol(write_study, dataset):
    table = {"dataset": dataset, "models": ["cnn"], "defenses": ["psat", "hsat", "dynamic"], "epsilons": [0.1]}
    study = Study(write_study({"tables": {"one": table}}))
    psat, hsat, dynamic = (defenses.build(run.base, run.options, run.training.epochs) for run in study.runs)
    training = study.runs[0].training
    assert (psat.curriculum.epochs, dynamic.horizon, training.milestone_epochs) == PROTOCOL[dataset]
    assert psat.curriculum.stop == (0.4 if psat.curriculum.kind == "linear" else 1)
    assert hsat.curriculum.epochs == [0, round(0.75 * training.epochs)] and hsat.curriculum.stop == 1
