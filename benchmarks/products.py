"""A product of the Hessian with a vector, as curvature, planes and spectra are made of: ours beside others'.

Ours keeps the graph of the gradient where all images are one batch; `halves`: two batches, so that it is made anew each
time. `forward over reverse`: torch.func's jvp of grad. `curvlinops`: its HessianLinearOperator. They take turns.
"""

from __future__ import annotations

import argparse

import pandas as pd
import torch
import torch.nn.functional as F
from curvlinops import HessianLinearOperator
from steps import measure
from torch import nn
from torch.func import functional_call, grad, jvp

from sat_core import Objective, models

CASES = {"cnn": ((1, 8, 8), 150), "small": ((3, 32, 32), 200), "smallcnn": ((1, 28, 28), 200)}
CASES |= {"preactresnet18": ((3, 32, 32), 32), "densenet121": ((3, 32, 32), 8)}


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=CASES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = {}
    for name in given.models:
        image, n = CASES[name]
        model = models.build(name, image, classes=10, mean=[0.5] * image[0], std=[0.5] * image[0]).eval()
        x, y = torch.rand(n, *image), torch.randint(10, (n,))
        ours = {"ours": Objective(model, x, y, n), "halves": Objective(model, x, y, n // 2)}
        vector = torch.randn_like(ours["ours"].theta)
        parts, weights = ours["ours"].weights(vector), dict(model.named_parameters())

        def loss(weights, model=model, x=x, y=y):
            return F.cross_entropy(functional_call(model, weights, x), y)

        operator = HessianLinearOperator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], check_deterministic=False
        )
        actions = {kind: lambda o=objective, v=vector: o.product(v) for kind, objective in ours.items()}
        actions["forward over reverse"] = lambda w=weights, v=parts, f=loss: jvp(grad(f), (w,), (v,))[1]
        actions["curvlinops"] = lambda h=operator, v=vector: h @ v
        assert torch.allclose(actions["ours"](), actions["curvlinops"](), rtol=1e-2, atol=1e-4 * vector.norm().item())
        times = pd.DataFrame(measure(actions, given.rounds))
        ratios = times.div(times["ours"], axis=0).median().drop("ours")
        rows[f"{name}, {n} images"] = {**ratios, "ours, ms": 1000 * times["ours"].median()}
        print(pd.DataFrame(rows).T.round(2).to_string(), flush=True)


if __name__ == "__main__":
    main()
