"""How long Snakemake takes to plan a study of many runs: `snakemake -n`, in a copy of the project.

Seconds until it knows every job (a real run then begins) and until it has listed them, too, which only a dry run does.
The first time every network is built and checked, later that is known.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers import Project  # noqa: E402

DEFENSES, EPSILONS = ["madry", "psat", "hsat", "trades"], [0.1, 0.15, 0.2, 0.25, 0.3]


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="a multiple of 20 (10,000)")
    parser.add_argument("--times", type=int, default=3, help="how often to plan (3)")
    given = parser.parse_args()
    table = {"dataset": "digits", "models": ["cnn"], "defenses": DEFENSES, "epsilons": EPSILONS}
    seeds = list(range(given.runs // (len(DEFENSES) * len(EPSILONS))))
    with tempfile.TemporaryDirectory() as name:
        project = Project(Path(name) / "project", {"tables": {"many": table | {"seeds": seeds}}})
        for i in range(given.times):
            began = time.perf_counter()
            process = project.start("--dry-run")
            while "Job stats:" not in project.said and process.poll() is None:
                time.sleep(0.05)
            planned = time.perf_counter() - began
            assert process.wait() == 0, project.said[-1000:]
            listed = time.perf_counter() - began
            print(f"{given.runs} runs, time {i + 1}: planned in {planned:.1f} s, listed after {listed:.1f} s")


if __name__ == "__main__":
    main()
