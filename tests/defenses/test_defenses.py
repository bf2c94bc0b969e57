"""Each defense against a plain restatement of its formula."""

import copy
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from defenses import restated
from helpers import REPOSITORY, TINY, run_epoch
from torch import nn

from sat_core import defenses
from sat_core.attacks import PGD, Perturbation
from sat_core.defenses.dynamic import fosc
from sat_core.runs.trainer import Trainer
from sat_core.study import Study, defense_names

EPOCHS = 10
PACED = {"curriculum": {"kind": "linear", "epochs": [0, 9]}}
OPTIONS = {
    "trades": {"beta": 1},
    "dynamic": {"horizon": 5},
    **dict.fromkeys(("psat", "hsat", "epsilon_curriculum", "step_curriculum", "loss_curriculum"), PACED),
}


def make_batch(n: int = 16, epoch: int = 5, steps: int = 5, dtype: torch.dtype = torch.float32) -> defenses.Batch:
    """Random images of 4x4 in 5 classes before a small network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)).to(dtype)
    x, y = torch.rand(n, 1, 4, 4, dtype=dtype), torch.randint(5, (n,))
    return defenses.Batch(model, x, y, torch.arange(n), 5, epoch, PGD(0.2, 0.05, steps))


def test_trades_loss_is_its_formula_in_float64():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5)).double()
    x, y = torch.rand(7, 1, 4, 4, dtype=torch.float64), torch.randint(5, (7,))
    x_adv = (x + 0.1 * torch.randn_like(x)).clamp(0, 1)
    p, q = model(x).softmax(1), model(x_adv).softmax(1)
    for reduction, divisor in (("batchmean", 7), ("mean", 7 * 5)):
        expected = torch.tensor(0.0, dtype=torch.float64)
        for i in range(7):
            expected = expected - p[i, y[i]].log() / 7
            for c in range(5):
                expected = expected + 6 * p[i, c] * (p[i, c].log() - q[i, c].log()) / divisor
        defense = defenses.build("trades", {"beta": 6, "reduction": reduction}, EPOCHS)
        batch = defenses.Batch(model, x, y, torch.arange(7), 5, 0, PGD(0.1, 0.05, 2))
        loss = defense.outer_loss(batch, Perturbation(x_adv, torch.zeros(7)))
        assert torch.allclose(loss, expected, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(value, model[1].weight, retain_graph=True)[0] for value in (loss, expected)]
        assert torch.allclose(*gradients, rtol=0, atol=1e-12)  # both terms are differentiated


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("trades", {"beta": 6}),
        ("trades", {"beta": 6, "sequence": "concatenated"}),
        ("mart", {}),
        ("mart", {"floor": 0}),
        ("score", {"clip": 0}),
        ("cat", {}),
    ],
)
def test_losses_stay_finite_in_float32_where_the_network_is_sure_and_wrong(name, options):
    batch = make_batch()
    defense = defenses.build(name, options, EPOCHS)
    with torch.no_grad():
        batch.model[-1].weight.mul_(1000)
    batch.state.update(defense.initial_state(len(batch.x), batch.x.device))
    loss = defense.outer_loss(batch, defense.perturb(batch))
    gradients = torch.autograd.grad(loss, list(batch.model.parameters()))
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("limit", [1.0, 0.999999])
def test_psat_that_stops_nothing_is_madry_bit_for_bit(write_study, limit):
    """At 1 the rule need not be asked; a hair below, it is, for every sample and step."""
    study = TINY | {"overrides": [TINY["overrides"][0]]}
    never = {"kind": "steps", "epochs": [0], "start": limit, "stop": limit}
    study["overrides"].append({"where": {"defense": "psat"}, "set": {"options": {"curriculum": never}}})
    loaded = Study(write_study(study))
    weights = []
    for name in ("madry", "psat"):
        trainer = Trainer(loaded.run(f"digits/cnn/{name}/eps0.3/seed0"), torch.device("cpu"))
        run_epoch(trainer)
        run_epoch(trainer)
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_fosc_of_a_batch_is_that_of_each_sample_alone():
    batch = make_batch(dtype=torch.float64)
    seen = []

    def rule(iterate):
        seen.append(fosc(iterate, batch.x[iterate.rows], 0.2))
        return iterate.loss > -1

    start = batch.x + 0.1 * torch.randn_like(batch.x)
    loss = defenses.cross_entropy(batch.y)
    batch.attack(batch.model, batch.x, loss, start=start, keep_going=rule)
    together = seen.copy()
    for i in range(len(batch.x)):
        seen.clear()
        x, z = batch.x[i : i + 1], start[i : i + 1].clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(batch.model(z), batch.y[i : i + 1]), z)
        alone = 0.2 * g.abs().sum() - ((z - x) * g).sum()
        assert together[0][i].item() == pytest.approx(alone.item(), rel=1e-9)


def test_fosc_is_zero_at_the_optimum_of_a_linear_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    x, y = 0.3 + 0.4 * torch.rand(9, 1, 4, 4, dtype=torch.float64), torch.randint(2, (9,))
    values = []

    def rule(iterate):
        values.append(fosc(iterate, x[iterate.rows], 0.2))
        return iterate.loss > -1

    PGD(0.2, 0.2, 4)(model, x, defenses.cross_entropy(y), start=x, keep_going=rule)
    assert (values[0] > 1e-3).all()  # at the clean image there is much to gain
    assert values[-1].abs().max() < 1e-12


def test_dynamic_asks_for_more_convergence_as_training_goes_on():
    dynamic = defenses.build("dynamic", {"c_max": 0.5, "horizon": 5}, EPOCHS)
    assert [dynamic.curriculum_value(e) for e in (0, 4, 5, 9)] == pytest.approx([0.5, 0.1, 0, 0])
    early, late = (dynamic.perturb(make_batch(epoch=e)).steps.float().mean() for e in (0, 9))
    assert early < late


@pytest.mark.parametrize("loss", ["ce", "mix"])
def test_cat_follows_its_rule_restated_plainly(loss):
    batch = make_batch(n=12)
    cat = defenses.build("cat", {"loss": loss, "eta": 0.05, "c": 2.0, "kappa": 1.0}, EPOCHS)
    batch.state.update(cat.initial_state(12, torch.device("cpu")))
    assert batch.state["epsilon"].tolist() == [0.0] * 12
    batch.state["epsilon"].uniform_(0, 0.2)
    before = batch.state["epsilon"].clone()
    torch.manual_seed(7)
    found = cat.perturb(batch)
    torch.manual_seed(7)
    noise = torch.distributions.Dirichlet(torch.ones(5)).sample((12,))
    start = torch.rand_like(batch.x)
    expected_loss = 0.0
    for i in range(12):
        x, y, eps = batch.x[i], int(batch.y[i]), min(float(before[i]) + 0.05, 0.2)
        target = 2 * eps * noise[i]
        target[y] += 1 - 2 * eps

        def objective(z, y=y, target=target):
            logits = batch.model(z[None])[0]
            value = -(target * logits.log_softmax(0)).sum()
            if loss == "mix":
                wrong = max(logits[j] for j in range(5) if j != y)
                value = value + torch.clamp(wrong - logits[y], min=-1.0)
            return value

        z = (x + eps * (2 * start[i] - 1)).clamp(0, 1)
        for _ in range(5):
            z.requires_grad_()
            (g,) = torch.autograd.grad(objective(z), z)
            z = torch.clamp(z.detach() + eps / 4 * g.sign(), x - eps, x + eps).clamp(0, 1)
        assert torch.allclose(found.x[i], z, atol=1e-6)
        fooled = int(batch.model(z[None]).argmax()) != y
        assert batch.state["epsilon"][i].item() == pytest.approx(eps - 0.05 * fooled, abs=1e-6)
        expected_loss += objective(z).item() / 12
    assert cat.outer_loss(batch, found).item() == pytest.approx(expected_loss, rel=1e-5)


def test_the_loss_of_an_attack_alone_is_the_cross_entropy():
    batch = restated.make_batch()
    found = restated.near(batch)
    expected = -sum(restated.probabilities(batch.model, found.x[i])[batch.y[i]].log() for i in range(9)) / 9
    assert restated.differences(batch, restated.defense("madry").outer_loss(batch, found), expected) <= 1e-9


def test_older_curricula_follow_their_difficulty():
    for lam, epoch in ((1 / 9, 0), (5 / 9, 4), (1.0, 9)):
        batch = make_batch(epoch=epoch)
        found = defenses.build("epsilon_curriculum", PACED, EPOCHS).perturb(batch)
        assert (found.x - batch.x).abs().max() <= lam * 0.2 + 1e-6
        steps = defenses.build("step_curriculum", PACED, EPOCHS).perturb(batch).steps
        assert (steps == min(5, int(lam * 5) + 1)).all()
        found = defenses.build("loss_curriculum", PACED, EPOCHS).perturb(batch)
        p = batch.model(found.x).softmax(1).gather(1, batch.y[:, None])[:, 0]
        assert ((1 - p > lam - 1e-6) | (found.steps == 5)).all()  # who stopped had reached lambda


def test_every_defense_trains_its_loss_down_on_digits(write_study):
    study = copy.deepcopy(TINY)
    study["tables"]["digits"]["defenses"] = sorted(defense_names())
    study["overrides"] = [{"set": {"training": {"epochs": 8, "milestones": []}, "attack": {"steps": 2}}}]
    curriculum = {"kind": "linear", "epochs": [0, 7]}
    paced = [name for name in sorted(defense_names()) if "curriculum" in name or name in ("psat", "hsat")]
    study["overrides"] += [
        {"where": {"defense": paced}, "set": {"options": {"curriculum": curriculum}}},
        {"where": {"defense": "dynamic"}, "set": {"options": {"horizon": 4}}},
        {"set": {"validation": {"fraction": 0.02}}},
    ]
    loaded = Study(write_study(study))
    for name in sorted(defense_names()):
        run = loaded.run(f"digits/cnn/{name}/eps0.3/seed0")
        trainer = Trainer(run.model_copy(update={"epsilon": type(run.epsilon)("0.05")}), torch.device("cpu"))
        most, epochs = (0.95, 3) if name == "score" else (0.75, 2)  # a squared error of probabilities falls late
        for _ in range(epochs):
            run_epoch(trainer)
        assert trainer.history[-1]["loss"] < most * trainer.history[0]["loss"], name
        assert trainer.history[-1]["validation_clean"] > 0.6, name


def test_a_new_defense_is_one_file_and_no_edit_elsewhere(tmp_path):
    shutil.copytree(REPOSITORY / "sat_core", tmp_path / "sat_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    (tmp_path / "sat_core/defenses/noisy.py").write_text(
        "from sat_core.attacks import Perturbation, uniform_start\n"
        "from sat_core.fields import Positive\n"
        "from sat_core.defenses import Batch, Defense\n"
        "class Noisy(Defense):\n"
        "    factor: Positive = 1.0\n"
        "    def perturb(self, batch: Batch) -> Perturbation:\n"
        "        x = uniform_start(batch.x, self.factor * batch.attack.epsilon)\n"
        "        return Perturbation(x, batch.y * 0)\n"
    )
    study = copy.deepcopy(TINY)
    study["tables"]["digits"]["defenses"] = ["noisy"]
    study["overrides"] = study["overrides"][:1]
    study["overrides"][0]["set"]["options"] = {"factor": 0.5}
    import yaml

    (tmp_path / "config/new.yaml").write_text(yaml.safe_dump(study))
    address = "digits/cnn/noisy/eps0.3/seed0"
    command = [sys.executable, "-m", "sat_core", "train", "--study", "config/new.yaml", "--run", address]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "results/new/runs" / address / "run.json").exists()


@pytest.mark.parametrize("name", sorted(defense_names()))
def test_every_defense_leaves_the_model_alone_while_attacking(name):
    batch = make_batch()
    defense = defenses.build(name, OPTIONS.get(name, {}), EPOCHS)
    batch.state.update(defense.initial_state(16, torch.device("cpu")))
    before = copy.deepcopy(batch.model.state_dict())
    defense.perturb(batch)
    assert all(torch.equal(before[k], v) for k, v in batch.model.state_dict().items())
    assert batch.model.training and all(p.requires_grad and p.grad is None for p in batch.model.parameters())
