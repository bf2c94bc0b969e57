"""``python -m sat_core <verb>``: the same commands that the Snakemake rules call."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from sat_core.errors import ConfigError, Hopeless, Interrupted, lacks_memory, unknown
from sat_core.report.kinds import FIGURES
from sat_core.runs import folder
from sat_core.study import Run, Study
from sat_core.study.address import AXES
from sat_core.study.file import PARTS

TEMPFAIL = 75


def parser() -> argparse.ArgumentParser:
    """The command line, one subcommand a verb."""
    top = argparse.ArgumentParser(prog="python -m sat_core", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("--study", required=True, type=Path, metavar="FILE", help="such as config/demo.yaml")
        return sub

    def add_run(sub: argparse.ArgumentParser, required: bool = True) -> None:
        form = "/".join(AXES[:3]) + "/eps<epsilon>/seed<seed>"
        every = "" if required else "; all of them if not given"
        sub.add_argument("--run", required=required, metavar="PATH", help=f"{form}; 8/255 is written eps8-255{every}")

    verb("check", "check a study and all of its runs, without running anything; prints the runs")
    plan = verb("plan", "what a study will take by its rehearsal, what does not fit that, and what it took")
    plan.add_argument("--gpus", type=positive, metavar="N", help="GPUs, or runs at a time without; 1 if not given")
    plan.add_argument("--write", action="store_true", help="write what the jobs need to resources/<study>.yaml")
    data = verb("data", "fetch, check and split a dataset, once for all its runs")
    data.add_argument("--dataset", required=True, metavar="NAME", help="a dataset of the study")
    train = verb("train", "train one run, continuing from its checkpoint if there is one")
    add_run(train)
    train.add_argument("--whole", action="store_true", help="then judge and measure it, as far as the study asks")
    evaluate = verb("evaluate", "judge a trained run with AutoAttack, continuing where it was interrupted")
    add_run(evaluate)
    evaluate.add_argument("--shard", type=shard, metavar="I-of-N", help="only the I-th of N parts, without merging")
    audit = verb("audit", "compare each difficulty with the exact Hessian on a trained run")
    add_run(audit)
    audit.add_argument("--samples", type=positive, default=64, metavar="N", help="images to look at; 64 if not given")
    add_run(verb("curvature", "measure the Hessian of a trained run's adversarial loss"))
    add_run(verb("landscape", "lay planes through a trained run's loss"))
    export = verb("export", "write a judged run in the form in which a model zoo takes it")
    add_run(export)
    export.add_argument("--format", required=True, choices=["robustbench"], help="whose form")
    export.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to; robustbench/ in the run's folder if not given"
    )
    accept = verb("accept", "declare finished results valid under today's code, on record: who, when, what changed")
    add_run(accept, required=False)
    table = verb("table", "write tables as csv, md, tex and html from the results there are, and print them")
    table.add_argument("--table", metavar="NAME", help="a table of the study; all of them if not given")
    compare = verb("compare", "write which defenses of a table beat which, on the same test images and seeds")
    compare.add_argument("--table", required=True, metavar="NAME", help="a table of the study, of several defenses")
    figure = verb("figure", "draw a figure of a table as png and pdf, with its numbers as csv")
    figure.add_argument("--table", required=True, metavar="NAME", help="a table of the study")
    figure.add_argument("--kind", required=True, choices=FIGURES, help="what to draw")
    status = verb("status", "say where every run is; exits 0 if all is complete, else 1")
    status.add_argument("--watch", action="store_true", help="until all is complete, or Ctrl-C")
    verb("report", "write the study's report.html, and any table or figure that is missing or out of date")
    add_judge(verbs)
    return top


def add_judge(verbs: Any) -> None:
    """The verb that needs no study."""
    text = "judge a network that was not trained here, alone: verdict, records and model card in one folder"
    judge = verbs.add_parser("judge", help=text, description=text)
    for name, form, help in (
        ("model", "NETWORK", "FILE.py:FUNCTION, the name of a network, or robustbench:NAME"),
        ("weights", "FILE", ".safetensors, .pt or .pth, nothing but tensors"),
        ("dataset", "NAME", "such as cifar10; its test images"),
        ("epsilon", "NUMBER", "in pixel units, such as 8/255"),
        ("out", "FOLDER", "where the results go; the same again goes on from there"),
    ):
        judge.add_argument(f"--{name}", required=True, metavar=form, help=help)
    judge.add_argument("--images", type=positive, metavar="N", help="the first N test images; all of them if not given")
    for name in ("mean", "std"):
        judge.add_argument(
            f"--{name}", nargs="+", metavar="NUMBER", help="per channel, if it does not normalise inside"
        )
    judge.add_argument("--prefix", help="of the weights' names in the file, where it is not found by itself")


def shard(text: str) -> tuple[int, int]:
    """``2-of-4`` or ``2/4`` -> (2, 4)."""
    match = re.fullmatch(r"(\d+)(?:-of-|/)(\d+)", text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise argparse.ArgumentTypeError(f"'{text}' is not of the form 1-of-4, or 1/4")


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 on")


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; 0 only on success. What a user can mend is told in one sentence on stderr, with status 2.

    Status 75 (EX_TEMPFAIL) means interrupted by a signal, with everything saved: run the same again.
    """
    options = parser().parse_args(arguments)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (as long as the process lives)
    for stream in (sys.stdout, sys.stderr):  # a terminal of another time may have no epsilon
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    about = Path(options.out) if options.verb == "judge" else options.study
    name = (getattr(options, "run", None) or about.stem).replace("%", "%%")
    form = f"%(asctime)s {name} %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stderr)
    logging.getLogger("auto-attack").setLevel(logging.WARNING)  # else it repeats its version at each attack
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells what becomes of every font of every figure
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):  # as Ctrl-C; training does better, and saves first
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, _stop)
    try:
        study, run = asked(options)
        try:
            status = dispatch(options, study, run)
            sys.stdout.flush()
            return status
        except (Exception, Interrupted) as error:
            if run is None:
                raise
            if isinstance(error, Interrupted):
                folder.count_interruption(run, options.verb)
            if lacks_memory(error) and re.search("cuda|cudnn|cublas|engine", str(error).lower()):
                error = no_room(error, options.verb)
            if isinstance(error, Hopeless) and options.verb in folder.STAGES:
                folder.give_up(run, options.verb, error)
            raise error from None
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as error:
        what = str(error) or "SIGINT: what was finished is kept; run the same again to go on"
        print(f"interrupted: {what}", file=sys.stderr)
        return TEMPFAIL
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        print(f"error: {out_of_memory(options.verb)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read along has stopped, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it ends
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def asked(options: argparse.Namespace) -> tuple[Study, Run | None]:
    """The study, which is found to be valid here, and the run, if one is meant."""
    if options.verb != "judge":
        study = Study(options.study)
        refuse_elsewhere(study)
        if options.verb not in ("check", "plan", "status"):
            folder.claim(study)
        return study, None if getattr(options, "run", None) is None else study.run(options.run)
    from sat_core.runs.judge import alone

    external = {key: getattr(options, key) for key in ("model", "weights", "mean", "std", "prefix")}
    return alone(Path(options.out), options.dataset, options.epsilon, external, options.images)


def refuse_elsewhere(study: Study) -> None:
    """Raise ConfigError where there are no results of the study, but there are above its file."""
    if not study.folder.exists():
        for above in study.path.resolve().parents:
            if (above / study.folder).is_dir():
                raise ConfigError(f"the results of {study.path} are in {above / study.folder}: call it from {above}")


def judge(study: Study, run: Run) -> None:
    """Bring the network in, judge it, write its card and print that."""
    from sat_core.report.card import write_card

    begin(study, run)
    finish(study, run, "evaluate")
    write_card(run)
    print((run.folder / folder.CARD).read_text(encoding="utf-8"))


def out_of_memory(verb: str, place: str = "") -> str:
    """That there is too little memory, and what setting takes less of it, where one does."""
    said = f"out of memory on {place}" if place else "out of memory"
    part = {"train": "training", "evaluate": "evaluation", "curvature": "curvature", "landscape": "curvature"}.get(verb)
    return f"{said}; lower {part}.batch_size" if part else said


def no_room(error: BaseException, verb: str) -> ConfigError:
    """A GPU's memory was too small: no reason to try again, unless others took of it, or the GPU may be ill."""
    from sat_core.runs.device import gpu_name, shares_gpu

    said = out_of_memory(verb, gpu_name())
    if shares_gpu():
        return ConfigError(f"{said}, or resources.runs_per_gpu: others work on this GPU")
    if not lacks_memory(error, surely=True):
        return ConfigError(f"{said}, unless the GPU is out of order; it said: {str(error).splitlines()[0]}")
    return Hopeless(said)


def _stop(number: int, _: object) -> NoReturn:
    raise Interrupted(f"{signal.Signals(number).name}: what was finished is kept; run the same again to go on")


def done(run: Run, stage: str) -> bool:
    """Whether there is nothing to do; asked before torch is loaded. Raises ConfigError where trying is of no use."""
    if folder.finished(run, stage) or folder.adopt(run, stage):
        logging.info("%s: %s is complete: nothing to do", run.folder, stage)
        return True
    if said := folder.hopeless(run, stage):
        raise ConfigError(f"{said} (found before; to try it all the same, delete {run.folder / folder.FAILED})")
    return False


def begin(study: Study, run: Run) -> None:
    """Train a run, or bring in one that was trained elsewhere, unless it is complete.

    A folder of its own holds what was asked before anything else, so that it can be told from others.
    """
    complete = done(run, "train")
    if not complete:
        from sat_core.runs.check import check

        check(study, [run])
    if run.place is not None:
        from sat_core.runs.judge import keep

        keep(study)
    if not complete:
        from sat_core.runs.device import free_memory
        from sat_core.runs.train import train

        train(run)
        free_memory()


def finish(study: Study, run: Run, stage: str) -> None:
    """Do what comes after training: ``evaluate``, ``curvature`` or ``landscape``, unless it is complete.

    A run that is judged in a rehearsal is measured, too.
    """
    if not done(run, stage):
        getattr(importlib.import_module(f"sat_core.runs.{stage}"), stage)(run)
    if stage == "evaluate" and study.rehearsed:
        real = study.rehearsed.run(run.id)
        if not folder.is_measured(run, real):
            from sat_core.runs.measure import measure

            measure(study, run, real)


def ahead(study: Study, run: Run) -> None:
    """Do what the study asks of a trained run while torch is loaded: the jobs to come find it done.

    What fails is left to its own job, which says so.
    """
    _, *stages = folder.stages_of(study, run.id)
    for stage in stages:
        try:
            finish(study, run, stage)
        except (ConfigError, MemoryError, RuntimeError) as error:
            logging.warning("%s of %s is left to its own job: %s", stage, run.id.path, error)


def work_on(options: argparse.Namespace, study: Study, run: Run) -> None:
    """Call the function of a verb that is about one run; each is imported only when asked for."""
    match options.verb:
        case "train":
            begin(study, run)
            if options.whole:
                ahead(study, run)
        case "evaluate" if options.shard:
            if not done(run, "evaluate"):
                from sat_core.runs.evaluate import evaluate

                evaluate(run, options.shard)
        case "audit":
            from sat_core.runs.audit import audit

            audit(run, options.samples)
        case "export":
            from sat_core.runs.export import export

            print(*export(run, options.out or run.folder / options.format), sep="\n")
        case "judge":
            judge(study, run)
        case stage:
            finish(study, run, stage)


def dispatch(options: argparse.Namespace, study: Study, run: Run | None) -> int:
    """Call the verb's function and return the status.

    Each is imported only when asked for, because torch takes seconds to load.
    """
    if run is not None and options.verb != "accept":
        work_on(options, study, run)
        return 0
    match options.verb:
        case "check":
            from sat_core.runs.check import check

            check(study, study.runs)
            print(*study.run_ids, sep="\n")
        case "plan":
            from sat_core.runs.check import check
            from sat_core.runs.plan import plan
            from sat_core.runs.rehearsal import is_current
            from sat_core.workflow import limits

            check(study, study.runs)
            rehearsal = Study(study.rehearsal_file) if study.rehearsal_file.exists() else None
            if rehearsal is not None and not is_current(study):
                other = f"{study.path} is not what was rehearsed, its settings have changed: rehearse it again"
                if options.write:
                    raise ConfigError(f"{other}, then --write")
                print(f"{other}; what follows is of its settings then.\n")
            print(plan(study, rehearsal, options.gpus or 1, limits(), options.write))
        case "data":
            from sat_core.runs.data import prepare

            datasets = {run.dataset: run for run in study.runs}
            if options.dataset not in datasets:
                raise ConfigError(f"{study.path}: {unknown('dataset', options.dataset, datasets)}")
            prepare(datasets[options.dataset])
        case "accept":
            refused, accepted = [], []
            for one in [one for one in study.runs if folder.record_of(one, "train")] if run is None else [run]:
                try:
                    accepted += [f"{one.id.path}: {change}" for change in folder.accept(one)]
                except ConfigError as error:
                    refused.append(str(error))
            if accepted or not refused:
                print(*accepted or ["nothing to accept: what is finished is of the present code"], sep="\n")
            if refused:
                raise ConfigError("; ".join(refused))
        case "report":
            from sat_core.report.page import write_report

            damaged = write_report(study)
            print(study.folder / "report.html")
            if damaged:
                raise ConfigError(" ".join(damaged))
        case "table" | "compare" | "figure":
            if options.table is not None and options.table not in study.file.tables:
                raise ConfigError(f"{study.path}: {unknown('table', options.table, study.file.tables)}")
            from sat_core.report import products

            if options.verb == "table":
                for name in [options.table] if options.table else study.file.tables:
                    products.table(study, name).write()
                    for part in PARTS:
                        print((study.folder / f"tables/{name}{part}.md").read_text(encoding="utf-8"))
            elif options.verb == "compare":
                if len(study.file.tables[options.table].defenses) < 2:
                    raise ConfigError(f"{study.path}: table {options.table} has one defense: nothing to compare")
                product = products.comparisons(study, options.table)
                product.write()
                print(product.files[0].read_text(encoding="utf-8"))
            else:
                product = products.figure(study, options.table, options.kind)
                if not product.runs["train"]:
                    key = {"landscape": "landscapes"}.get(stage := FIGURES[options.kind].stage, stage)
                    raise ConfigError(f"{study.path}: table {options.table} has no '{key}': nothing to draw")
                product.write()
                print(product.files[0])
        case "status":
            from sat_core.report.terminal import show

            return 0 if show(study, options.watch) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
