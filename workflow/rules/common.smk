import gc
import inspect
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import _IOFile
from snakemake.jobs import Job
from snakemake.settings.types import DeploymentMethod, RerunTrigger

try:
    from sat_core import workflow as sat
    from sat_core.errors import ConfigError
    from sat_core.report.kinds import FIGURES
    from sat_core.study.file import COMPARISONS, PARTS
except ImportError as error:
    if "--lint" not in sys.argv:  # which needs the rules only, and works where nothing but Snakemake is
        raise WorkflowError(
            f"{sys.executable}, which runs Snakemake, lacks {error.name}: type `make setup` and `. .venv/bin/activate` "
            "first, or install sat-core[workflow] there"
        )
    ConfigError, sat = ValueError, None
    STUDY, STUDY_FILE, RESULTS, TABLES, PARTS, FIGURES = None, "config/study.yaml", "results/study", [], ("",), {}
    COMPARISONS = "-comparisons"
    RUNS, GRES, MAX_MINUTES, MAX_MEM_MB = [], "", 0, 0


def told(function, *arguments):
    """What a user can mend is one sentence, without a traceback."""
    try:
        return function(*arguments)
    except ConfigError as error:
        raise WorkflowError(str(error))


def do_without_conda():
    """A profile that asks for conda also works where there is none, in the Python that runs Snakemake, and says so."""
    methods = workflow.deployment_settings.deployment_method if workflow.deployment_settings else set()
    if DeploymentMethod.CONDA in methods and not shutil.which("conda"):
        methods.discard(DeploymentMethod.CONDA)
        logger.warning(f"conda is not on PATH: the rules run in {sys.prefix}, which `make setup` made from uv.lock.")


def is_news(record):
    """Not that a result was there before its own job ran: `train --whole` made it. Snakemake would warn for each."""
    return "not present when the DAG was created" not in str(record.msg)


async def never(*_):
    """Whether an input is newer than an output: Snakemake asks whatever its rerun triggers are."""
    return False


@cache
def study():
    """The study; the first to ask, while Snakemake finds out what has to be done, tells it what is out of date."""
    if workflow.is_main_process:
        if workflow.dag_settings.rerun_triggers == RerunTrigger.all():
            workflow.dag_settings.rerun_triggers = frozenset()  # times of files say nothing, their records do
            _IOFile.is_newer = never
        workflow.dag.forcefiles.update(told(sat.to_redo, STUDY))
    elif workflow.execution_settings is not None:
        workflow.execution_settings.keep_going = True  # within an allocation, too: one run's failure costs no other's
    return STUDY


if sat:
    if workflow.is_main_process:
        lost = {key: value for key, value in told(sat.of_profile, sys.argv).items() if key not in config}
        config.update(lost)
        workflow.config_settings.config_args += [f"{key}={value}" for key, value in lost.items()]
    STUDY = told(sat.open_study, workflow.configfiles, config, workflow.is_main_process)
    STUDY_FILE, RESULTS, TABLES = STUDY.path, str(STUDY.folder), list(STUDY.file.tables)
    GRES, MAX_MINUTES, MAX_MEM_MB = (told(sat.site, config, key, default) for key, default in sat.SITE.items())
    RUNS = told(lambda: STUDY.runs) if workflow.is_main_process else []
    told(sat.refuse_pin_files, Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parents[1] / "envs")
    sat.use_this_python()
    if workflow.is_main_process:
        told(sat.check_once, STUDY)
        do_without_conda()
        if workflow.local_exec:
            sat.tell_without_gpu(STUDY)
            logger.addFilter(is_news)
        Job.restart_times = property(
            lambda job: sat.restarts(STUDY, job.rule.name, job.wildcards_dict.get("run"), job.rule.restart_times)
        )
    else:
        # SLURM warns every process of a job step. The training saves a checkpoint on it, and Snakemake must live to see that.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

RUN = f"{RESULTS}/runs/{{run}}"


wildcard_constraints:
    run=r"[a-z0-9_-]+/[a-z0-9_-]+/[a-z0-9_-]+/eps[0-9.-]+/seed[0-9]+",
    shard=r"[0-9]+-of-[0-9]+",
    table="|".join(TABLES),
    kind="|".join(FIGURES),


@cache
def run_at(path):
    return study().run(path)


def of_run(function):
    """What all runs have in common or, where they differ, a function of wildcards.

    That costs: Snakemake calls it, and asks for its signature, some dozen times a job.
    """
    if RUNS:
        first, *others = map(function, RUNS)
        if all(other == first for other in others):
            return first

    def asked(wildcards):
        return function(run_at(wildcards.run))

    asked.__signature__ = inspect.signature(asked)
    return asked


def of_attempt(setting, most):
    """A resource that grows with each failure, up to what the site allows."""

    def asked(wildcards, attempt):
        return sat.asked_for(run_at(wildcards.run), setting, attempt, most)

    asked.__signature__ = inspect.signature(asked)
    return asked


gc.disable()  # planning ten thousand runs makes millions of objects that live until the end; `onstart` enables it
