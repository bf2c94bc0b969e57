"""What a Trainer does in a step and at the end of an epoch, setting by setting."""

import copy
import math

import pytest
import torch
from helpers import MADRY, PSAT, TINY, run_epoch, tiny_with

from sat_core import augmentation
from sat_core.errors import Hopeless
from sat_core.runs.trainer import Trainer
from sat_core.study import Study

CPU = torch.device("cpu")


@pytest.fixture
def trainer(write_study):
    """A function: the Trainer of one of the small study's runs with these settings."""

    def make(address: str = MADRY, **settings) -> Trainer:
        return Trainer(Study(write_study(tiny_with(**settings))).run(address), CPU)

    return make


def first_batch(trainer: Trainer) -> tuple[torch.Tensor, ...]:
    return next(trainer.train_images.batches(torch.arange(64), 64))


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"milestones": [2, 3]}, [0.4, 0.4, 0.04, 0.004]),
        ({"milestones": [3], "warm_up": 2}, [0.4 / 3, 0.8 / 3, 0.4, 0.04]),
        ({"milestones": [], "schedule": "cosine"}, [0.2 * (1 + math.cos(math.pi * e / 4)) for e in range(4)]),
        ({"milestones": [], "schedule": "cosine", "warm_up": 2}, [0.4 / 3, 0.8 / 3, 0.4, 0.2]),
        ({"milestones": [], "schedule": "linear"}, [0.4, 0.3, 0.2, 0.1]),
    ],
)
def test_the_learning_rate_of_each_epoch_is_that_of_its_schedule(trainer, training, expected):
    found = trainer(training={"epochs": 4, "lr": 0.4, **training}, data={"train_images": 100})
    for _ in expected:
        run_epoch(found)
    assert [row["lr"] for row in found.history] == pytest.approx(expected)


def test_training_images_are_augmented_in_the_order_that_the_study_names(trainer):
    found = trainer(training={"augmentation": ["brightness", "flip"]})
    index, x, y = first_batch(found)
    torch.manual_seed(5)
    found.step(index, x, y)
    torch.manual_seed(5)
    assert torch.equal(found.latest[0], augmentation.flip(augmentation.brightness(x)))


def test_clip_bounds_the_gradient(trainer):
    found = trainer(training={"clip": 1e-3})
    found.step(*first_batch(found))
    norm = torch.cat([p.grad.flatten() for p in found.model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_swa_is_the_mean_of_the_epochs_from_average_from_on(trainer):
    swa = {"epochs": 3, "average": "swa", "average_from": 1}
    found, seen = trainer(training=swa, data={"train_images": 100}), []
    for _ in range(3):
        run_epoch(found)
        seen.append(copy.deepcopy(found.model.state_dict()))
    for key, value in found.network.state_dict().items():
        assert torch.allclose(value, (seen[1][key] + seen[2][key]) / 2, atol=1e-7)


def test_swa_measures_batch_norm_anew_on_the_training_images_as_they_are(write_study):
    settings = {"average": "swa", "batch_size": 64, "augmentation": ["flip"]}
    content = tiny_with(training=settings, data={"train_images": 120}, attack={"steps": 1})
    content["tables"] = {"digits": TINY["tables"]["digits"] | {"models": ["preactresnet18"]}}
    trainer = Trainer(Study(write_study(content)).run(MADRY.replace("cnn", "preactresnet18")), CPU)
    for _ in trainer.steps():
        pass
    trainer.average_weights("swa")
    x, _ = trainer.train_images.batch(slice(None))
    network = trainer.network
    with torch.no_grad():
        first = [network.network[0]((part - network.mean) / network.std) for part in x.split(64)]
    expected = torch.stack([features.mean(dim=(0, 2, 3)) for features in first]).mean(dim=0)
    assert torch.allclose(network.network[1].bn1.running_mean, expected, atol=1e-5)


def test_the_averaged_network_is_the_one_that_is_validated(trainer):
    found, asked = trainer(training={"average": "ema"}, data={"train_images": 100}), []
    for _ in found.steps():
        pass
    for network in (found.model, found.average.module):
        network.register_forward_hook(lambda network, *_: asked.append(network))
    found.validate()
    assert asked and all(network is found.average.module for network in asked)


def test_what_a_constant_could_reach_counts_for_nothing_in_the_choice_of_an_epoch(tiny):
    trainer = Trainer(tiny.run(PSAT), CPU)
    from_worst_to_best = [(0.104, 0.104), (0.7, 0.02), (0.98, 0.0), (0.9, 0.3), (0.95, 0.3)]
    scores = [trainer.score(*accuracies) for accuracies in from_worst_to_best]
    assert scores == sorted(scores) and len(set(scores)) == 5


def test_the_best_epoch_of_who_attacks_is_the_robust_one_and_of_others_the_accurate_one(write_study, tiny_study):
    tiny_study["tables"]["digits"]["defenses"] = ["standard", "psat"]
    both = Study(write_study(tiny_study))
    standard, psat = (Trainer(both.run(PSAT.replace("psat", name)), CPU) for name in ("standard", "psat"))
    assert standard.score(0.9, 0.3) > standard.score(0.8, 0.5)
    assert psat.score(0.9, 0.3) < psat.score(0.8, 0.5)


def test_where_the_last_epoch_is_asked_for_it_is_the_best(trainer):
    last = trainer(training={"select": "last"})
    first = last.score(1.0, 1.0)
    last.epoch = 1
    assert last.score(0.0, 0.0) > first


def test_of_two_epochs_that_are_as_good_the_first_is_kept(trainer):
    found = trainer(training={"lr": 1e-30}, data={"train_images": 100})
    for _ in range(2):
        run_epoch(found)
    first, second = (found.score(row["validation_clean"], row["validation_robust"]) for row in found.history)
    assert first == second == found.best["score"] and found.best["epoch"] == 0


def test_weights_that_are_not_finite_end_the_training(trainer):
    found = trainer()
    next(found.steps())
    next(found.model.parameters()).data.view(-1)[0] = torch.inf
    with pytest.raises(Hopeless, match="a weight is not finite"):
        found.finish_epoch()
