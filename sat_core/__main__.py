"""``python -m sat_core <verb>``: the same commands that the Snakemake rules call."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from sat_core.config import AXES, ConfigError, Study, unknown

LANDSCAPES = ("landscape", "landscape-hessian", "landscape-input", "landscape-reattacked")
FIGURES = ("curves", "tradeoff", "curvature", "spectrum", *LANDSCAPES)


def parser() -> argparse.ArgumentParser:
    """The command line, one subcommand a verb."""
    top = argparse.ArgumentParser(prog="python -m sat_core", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("--study", required=True, type=Path, metavar="FILE", help="such as config/demo.yaml")
        return sub

    def add_run(sub: argparse.ArgumentParser) -> None:
        form = "/".join(AXES[:3]) + "/eps<epsilon>/seed<seed>"
        sub.add_argument("--run", required=True, metavar="PATH", help=f"{form}; 8/255 is written eps8-255")

    def add_table(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--table", required=True, metavar="NAME", help="a table of the study")

    verb("check", "check a study and all of its runs, without running anything; prints the runs")
    data = verb("data", "fetch a dataset if it is not there, and describe it")
    data.add_argument("--dataset", required=True, metavar="NAME", help="a dataset of the study")
    add_run(verb("train", "train one run, continuing from its checkpoint if there is one"))
    add_run(verb("evaluate", "judge a trained run with AutoAttack"))
    add_run(verb("curvature", "measure the Hessian of a trained run's adversarial loss"))
    add_run(verb("landscape", "lay planes through a trained run's loss"))
    add_table(verb("table", "write a table as csv, md, tex and html, and print it"))
    figure = verb("figure", "draw a figure of a table as png and pdf")
    add_table(figure)
    figure.add_argument("--kind", required=True, choices=FIGURES, help="what to draw")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; 0 only on success. What a user can mend is told in one sentence on stderr."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        dispatch(options, Study(options.study))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def dispatch(options: argparse.Namespace, study: Study) -> None:
    """Call the verb's function; each is imported only when asked for, because torch takes seconds to load."""
    match options.verb:
        case "check":
            from sat_core.plan import check

            check(study.runs)
            print(*study.run_ids, sep="\n")
        case "data":
            from sat_core.data import describe

            datasets = {run.dataset: run for run in study.runs}
            if options.dataset not in datasets:
                raise ConfigError(f"{study.path}: {unknown('dataset', options.dataset, datasets)}")
            describe(datasets[options.dataset])
        case "train":
            from sat_core.plan import check
            from sat_core.training import train

            run = study.run(options.run)
            check([run])
            train(run)
        case "evaluate":
            from sat_core.evaluation import evaluate

            evaluate(study.run(options.run))
        case "curvature":
            from sat_core.curvature import curvature

            curvature(study.run(options.run))
        case "landscape":
            from sat_core.landscape import landscape

            landscape(study.run(options.run))
        case "table" | "figure":
            if options.table not in study.file.tables:
                raise ConfigError(f"{study.path}: {unknown('table', options.table, study.file.tables)}")
            if options.verb == "table":
                from sat_core.tables import write_table

                print(write_table(study, options.table).read_text(encoding="utf-8"))
            else:
                from sat_core.figures import write_figure

                print(write_figure(study, options.table, options.kind))


if __name__ == "__main__":
    sys.exit(main())
