"""Each defense against a plain restatement of its formula."""

import torch
import torch.nn.functional as F
from torch import nn

from sat_core import defenses
from sat_core.attacks import PGD
from sat_core.config import Study, Training
from sat_core.training import Trainer

TRAINING = Training(epochs=10, lr=0.1)


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
        defense = defenses.build("trades", {"beta": 6, "reduction": reduction}, TRAINING)
        batch = defenses.Batch(model, x, y, torch.arange(7), 0, PGD(0.1, 0.05, 2))
        loss = defense.loss(batch, x_adv)
        assert torch.allclose(loss, expected, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(value, model[1].weight, retain_graph=True)[0] for value in (loss, expected)]
        assert torch.allclose(*gradients, rtol=0, atol=1e-12)  # both terms are differentiated


def test_trades_perturbation_raises_the_divergence_it_maximises():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    x, y = torch.rand(16, 1, 4, 4), torch.randint(5, (16,))
    batch = defenses.Batch(model, x, y, torch.arange(16), 0, PGD(0.1, 0.025, 10))
    x_adv = defenses.build("trades", {"beta": 1}, TRAINING).perturb(batch).x
    noise = (x + 0.1 * torch.randn_like(x).sign()).clamp(0, 1)

    def divergence(z):
        return F.kl_div(model(z).log_softmax(1), model(x).softmax(1), reduction="none").sum(1)

    assert (divergence(x_adv) > divergence(noise)).all()


def test_psat_with_lambda_one_is_madry_bit_for_bit(write_study):
    from conftest import TINY

    study = TINY | {"overrides": [TINY["overrides"][0]]}
    never = {"kind": "steps", "epochs": [0], "start": 1.0, "stop": 1.0}
    study["overrides"].append({"where": {"defense": "psat"}, "set": {"options": {"curriculum": never}}})
    loaded = Study(write_study(study))
    weights = []
    for name in ("madry", "psat"):
        trainer = Trainer(loaded.run(f"digits/cnn/{name}/eps0.3/seed0"), torch.device("cpu"))
        trainer.run_epoch()
        trainer.run_epoch()
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_every_defense_file_holds_one_defense():
    assert {"standard", "madry", "trades", "psat"} <= set(defenses.names())
