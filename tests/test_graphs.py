"""PGD's steps as one graph, recorded once, on a tape that stands for the GPU: the same as the loop, to the bit."""

import contextlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY
from tape import Waits, tape
from test_attacks import batch_and_model

from sat_core import attacks, defenses, models
from sat_core.attacks import PGD, cross_entropy, uniform_start, while_correct
from sat_core.errors import ConfigError, lacks_memory
from sat_core.graphs import KEPT, Graphs, are_wanted, cuda_graph
from sat_core.runs.measure import Paced, first_ones
from sat_core.runs.trainer import Trainer
from sat_core.study import Study, defense_names

EPOCHS = 10


def paced(start: float, stop: float) -> dict:
    return {"curriculum": {"kind": "linear", "epochs": [0, 9], "start": start, "stop": stop}}


PACED = paced(0.0, 1.0)
CASES = {
    **{name: (name, {}) for name in defense_names() - {"standard"}},
    **{name: (name, PACED) for name in ("epsilon_curriculum", "step_curriculum")},
    "psat": ("psat", paced(-0.04, 0.1)),
    "hsat": ("hsat", paced(0.3, 0.8)),
    "loss_curriculum": ("loss_curriculum", paced(0.84, 0.95)),
    "trades": ("trades", {"beta": 1}),
    "dynamic": ("dynamic", {"horizon": 9, "c_max": 0.2}),
    "gairat": ("gairat", {"begin": 0}),
    "cat, ce": ("cat", {"loss": "ce"}),
    "fat, without noise": ("fat", {"omega": 0}),
    "hsat, gauss_newton": ("hsat", paced(0.3, 0.8) | {"metric": "gauss_newton"}),
    "mail, uniform": ("mail", {"start": "uniform"}),
    "score, at": ("score", {"form": "at"}),
}
STOPS = ("psat", "hsat", "dynamic", "fat", "loss_curriculum", "step_curriculum")


@pytest.fixture(autouse=True)
def nothing_leaves(monkeypatch):
    """In a graph samples that stop stay in the batch, and the size of a batch is seen in a sum's last bit."""
    monkeypatch.setitem(attacks.PARTS, "cpu", 1)


def digits_network(seed: int = 0) -> models.Normalized:
    torch.manual_seed(seed)
    model = models.build("cnn", (1, 8, 8), 10, mean=[0.3], std=[0.4])
    with torch.no_grad():
        list(model.parameters())[-2].mul_(8)  # as confident as one that has learnt something
    return model


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_every_defense_finds_the_same_by_graph_as_by_loop(case, precision):
    """Over steps of an optimiser and of the curriculum, and with a partial batch between."""
    name, options = CASES[case]
    defense = defenses.build(name, options, EPOCHS)
    found, captures = [], []

    def counted(work):
        captures.append(work)
        return tape(work)

    for graphs in (None, Graphs(32, capture=counted)):
        model = digits_network()
        models.compute_in(precision, model)
        optimizer = torch.optim.SGD(model.parameters(), 0.5, 0.9, fused=True)
        attack = PGD(0.1, 0.01, 10, graphs=graphs)
        state, seen = defense.initial_state(100, torch.device("cpu")), []
        for number, size in enumerate((32, 32, 7, 32, 32)):
            torch.manual_seed(number)
            x = torch.rand(size, 1, 8, 8)
            y = model(x).argmax(dim=1)
            batch = defenses.Batch(model, x, y, torch.randperm(100)[:size], 10, number // 2, attack, state)
            torch.manual_seed(100 + number)
            one = defense.perturb(batch)
            seen += [one.x, one.steps, one.target, one.weights, *(value.clone() for value in state.values())]
            optimizer.zero_grad()
            defense.outer_loss(batch, one).backward()
            optimizer.step()
        found.append(seen)
        assert graphs is None or all(graphs.found.values())
    if name in STOPS:
        assert len(torch.cat(found[0][1 :: len(found[0]) // 5]).unique()) > 2  # it stops some, not all
    for by_loop, by_graph in zip(*found, strict=True):
        assert by_loop is by_graph is None or torch.equal(by_loop, by_graph)
    assert 1 <= len(captures) <= 3  # one, or where the rule knows the epoch one for each of three


def test_what_closes_over_tensors_is_attacked_as_written():
    x, y, model = batch_and_model(0)
    graphs = Graphs(len(x), capture=tape)
    attack = PGD(0.1, 0.05, 3, graphs=graphs)
    attack(model, x, lambda logits, rows: cross_entropy(y)(logits, rows), start=x)
    closing = lambda iterate: iterate.loss > 0  # noqa: E731
    for rule in (closing, partial(first_ones, 2.0, lambda iterate: iterate.loss > y.sum())):
        attack(model, x, cross_entropy(y), start=x, keep_going=rule)
    assert not graphs.found
    attack(model, x, cross_entropy(y), start=x, keep_going=while_correct(y))
    assert len(graphs.found) == 1


def test_large_networks_whose_samples_stop_are_attacked_as_written():
    x, y, model = batch_and_model(0)
    graphs = Graphs(len(x), stopping=False, capture=tape)
    for rule, expected in ((while_correct(y), 0), (None, 1)):
        PGD(0.1, 0.05, 3, graphs=graphs)(model, x, cross_entropy(y), start=x, keep_going=rule)
        assert len(graphs.found) == expected


def test_a_rule_that_asks_the_gpu_for_a_value_is_attacked_as_written(caplog):
    x, y, model = batch_and_model(0)
    graphs, start = Graphs(len(x), capture=tape), uniform_start(x, 0.1)
    found = [
        PGD(0.1, 0.05, 3, graphs=one)(model, x, cross_entropy(y), start=start, keep_going=partial(impatient, y))
        for one in (None, graphs, graphs)
    ]
    assert all(torch.equal(found[0].x, other.x) and torch.equal(found[0].steps, other.steps) for other in found[1:])
    assert caplog.text.count("without a CUDA graph") == 1 and len(graphs.found) == 1


def test_a_graph_that_does_not_fit_is_done_without(caplog):
    x, y, model = batch_and_model(0)

    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    graphs = Graphs(len(x), capture=full)
    by_loop, other = (PGD(0.1, 0.05, 3, graphs=one)(model, x, cross_entropy(y), start=x) for one in (None, graphs))
    assert torch.equal(by_loop.x, other.x) and "takes too much memory" in caplog.text
    error = RuntimeError("operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory.")
    assert lacks_memory(error) and not lacks_memory(RuntimeError("another"))


def test_a_capture_that_fails_says_how_to_do_without(monkeypatch):
    """Of CUDA only what cannot be had here: work that fails while it is captured, and torch left on another stream."""
    streams = []

    @contextlib.contextmanager
    def capturing(*_, **__):
        yield
        raise RuntimeError("operation not permitted\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: here)
    monkeypatch.setattr("sat_core.graphs.side_stream", lambda: here)
    monkeypatch.setattr("sat_core.graphs.forbidding_waits", contextlib.nullcontext)
    here = SimpleNamespace(wait_stream=lambda _: None)
    with pytest.raises(ConfigError, match=r"CUDA graph: operation not permitted; with SAT_CORE_GRAPHS=0 in the env"):
        cuda_graph(lambda: None)
    assert streams == [here]
    assert are_wanted()
    monkeypatch.setenv("SAT_CORE_GRAPHS", "0")
    assert not are_wanted()


def test_what_a_rehearsal_times_is_by_graph_where_the_training_is():
    x, y, model = batch_and_model(0)
    graphs = Graphs(len(x), capture=tape)
    for share in (1.0, 0.5):
        attack = Paced(0.1, 0.05, 3, graphs=graphs, share=share)
        for _ in range(2):  # P-SAT's rule, too, holds the attack
            found = attack(model, x, cross_entropy(y), start=x, keep_going=partial(while_correct_in, attack, y))
            assert found.steps.tolist() == [3 * (row < share * len(x)) for row in range(len(x))]
    assert len(graphs.found) == 2 and all(graphs.found.values())


def while_correct_in(_: PGD, y, iterate):
    return while_correct(y)(iterate)


def impatient(y, iterate):
    return while_correct(y)(iterate) if iterate.loss.sum().item() > 0 else iterate.loss > 0


def test_weights_that_move_in_memory_make_another_graph():
    x, y, model = batch_and_model(0)
    graphs = Graphs(len(x), capture=tape)
    for _ in range(2):
        PGD(0.1, 0.05, 3, graphs=graphs)(model, x, cross_entropy(y), start=x)
        assert len(graphs.found) == 1
    model[0].weight.data = model[0].weight.data * 2
    by_graph = PGD(0.1, 0.05, 3, graphs=graphs)(model, x, cross_entropy(y), start=x)
    assert len(graphs.found) == 2
    assert torch.equal(by_graph.x, PGD(0.1, 0.05, 3)(model, x, cross_entropy(y), start=x).x)


def test_only_the_latest_graphs_are_kept():
    x, y, model = batch_and_model(0)
    graphs = Graphs(len(x), capture=tape)
    for i in range(KEPT + 3):
        PGD(0.1, 0.05, 3, graphs=graphs)(model, x, cross_entropy(y), start=x, noise=0.01 * i)
    assert len(graphs.found) == KEPT


def test_the_gpu_is_asked_every_eighth_step_whether_a_sample_still_moves():
    x, y, model = batch_and_model(0)
    attack = PGD(0.1, 0.001, 40, graphs=Graphs(len(x), capture=tape))
    for rule, expected in ((None, 0), (partial(never_stop, y), 4), (partial(stop_all, y), 1)):
        attack(model, x, cross_entropy(y), start=x, keep_going=rule)
        with Waits() as waits:
            attack(model, x, cross_entropy(y), start=x, keep_going=rule)
        assert waits.count == expected


def never_stop(y, iterate):
    return iterate.loss > -1


def stop_all(y, iterate):
    return iterate.loss < -1


VARIANTS = {"awp": {"awp": {"gamma": 0.01}, "clip": 1.0}, "ema": {"average": "ema"}, "cosine": {"schedule": "cosine"}}
ASKS = {"psat", "hsat", "dynamic", "fat", "gairat", "loss_curriculum", "step_curriculum"}
"""Whose samples may stop, or whose rule counts: of 10 steps the eighth asks whether any still moves."""


def test_a_training_step_waits_for_the_gpu_once_at_most(write_study):
    """The table in docs/performance.md. Large networks whose samples stop are attacked by loop: once a step of PGD."""
    names = sorted(defense_names())
    study = {
        "tables": {"t": TINY["tables"]["digits"] | {"defenses": [*names, *VARIANTS]}},
        "variants": {name: {"defense": "madry"} for name in VARIANTS},
        "overrides": [
            {"set": {"training": {"epochs": 10, "milestones": []}, "attack": {"steps": 10}}},
            {"where": {"defense": sorted(ASKS - {"dynamic", "fat", "gairat"})}, "set": {"options": paced(0.3, 0.9)}},
            {"where": {"defense": "gairat"}, "set": {"options": {"begin": 0}}},
            *({"where": {"defense": name}, "set": {"training": value}} for name, value in VARIANTS.items()),
        ],
    }
    loaded, found = Study(write_study(study)), {}
    for name in (*names, *VARIANTS):
        trainer = Trainer(loaded.run(f"digits/cnn/{name}/eps0.3/seed0"), torch.device("cpu"))
        trainer.attack = replace(trainer.attack, graphs=Graphs(64, capture=tape))
        batches = trainer.train_images.batches(torch.arange(192), 64)
        trainer.step(*next(batches))
        with Waits() as waits:
            trainer.step(*next(batches))
        found[name] = waits.count
    found["ema"] -= 2  # torch's average asks whether it is the first, of a number that it keeps on the processor
    assert found == {name: int(name in ASKS) for name in found}
