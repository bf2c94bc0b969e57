"""What bfloat16 in training does to accuracies: the same runs in both precisions, judged by AutoAttack in float32."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
import yaml

from sat_core.errors import ConfigError
from sat_core.runs.evaluate import evaluate
from sat_core.runs.files import read_json
from sat_core.runs.train import train
from sat_core.study import Study


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--root", type=Path, help="where the dataset is, if not where its configuration says")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--defenses", nargs="+", default=["madry", "psat"])
    parser.add_argument("--epsilon", default="0.2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, help="judge only so many test images")
    parser.add_argument("--set", type=yaml.safe_load, default={}, help="further settings, as YAML")
    parser.add_argument("--out", type=Path, default=Path("results/bench/precision.csv"))
    given = parser.parse_args()
    settings = {"resources": {"threads": torch.get_num_threads()}} | given.set
    if given.root:
        settings["data"] = {"root": str(given.root.resolve())}
    if given.images:
        settings["evaluation"] = {"images": given.images}
    table = {"dataset": given.dataset, "models": [given.model], "defenses": given.defenses, "epsilons": [given.epsilon]}
    table["seeds"] = list(range(given.seeds))
    out, rows = given.out.resolve(), []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        studies = {}
        for precision in ("float32", "bfloat16"):
            training = settings.get("training", {}) | {"precision": precision}
            content = {"tables": {"t": table}, "overrides": [{"set": settings | {"training": training}}]}
            Path(f"{precision}.yaml").write_text(yaml.safe_dump(content))
            studies[precision] = Study(f"{precision}.yaml")
        for id in studies["float32"].run_ids:
            for precision, study in studies.items():
                run = study.run(id)
                train(run)
                evaluate(run)
                verdict = read_json(run.folder / "autoattack.json")
                row = {"precision": precision, "defense": run.defense, "seed": run.seed, "n": verdict["n"]}
                row |= {"clean": 100 * verdict["clean"], "robust": 100 * verdict["robust"]}
                rows.append(row | {"seconds": read_json(run.folder / "run.json")["seconds"]})
                print(rows[-1], flush=True)
    found = pd.DataFrame(rows)
    found.to_csv(out, index=False)
    cells = found.groupby(["defense", "precision"])[["clean", "robust", "seconds"]].agg(["mean", "std"])
    print(cells.to_markdown(floatfmt=".2f"))


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
