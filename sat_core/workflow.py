"""What the Snakefile asks: the study, checked once; which files belong to it; whether machine and cluster are fit.

Needs neither torch nor Snakemake. Whatever is wrong is a ConfigError, which the Snakefile passes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sat_core.errors import ConfigError, unknown
from sat_core.report import products
from sat_core.report.status import look
from sat_core.runs import folder
from sat_core.runs.files import atomic
from sat_core.runs.heartbeat import ANEW, began_otherwise
from sat_core.study import PACKAGE, Run, Study
from sat_core.study.file import StudyFile
from sat_core.study.fingerprint import changes, code, own_code
from sat_core.study.reading import read_yaml

T = TypeVar("T", int, str)
log = logging.getLogger(__name__)

SITE = {"gres": "gpu:1", "max_minutes": sys.maxsize, "max_mem_mb": sys.maxsize}
"""What a profile may say of the machine, under `config`, and what holds where it does not."""

HOUR = 60
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""One of them is there where NVIDIA's driver is, or AMD's, or Windows' around one of them."""


def open_study(configfiles: Sequence[str], config: Mapping[str, Any], anew: bool = True) -> Study:
    """The study of ``--configfile``, or of the key ``study`` where the workflow is a module of another.

    With ``--config rehearse=true`` it is that study's rehearsal: see :func:`rehearsal_of`. Raises ConfigError for
    anything wrong in it, and for a ``--config`` that nobody would read.
    """
    if "study" in config:
        path = Path(config["study"])
    elif len(configfiles) == 1:
        path = Path(configfiles[0])
    else:
        raise ConfigError("a study is one file: snakemake --configfile config/<study>.yaml")
    study = Study(path)
    content = read_yaml(path) if "study" not in config else {}
    for key, value in config.items():
        if key in StudyFile.model_fields:
            if value != content.get(key):
                raise ConfigError(f"--config {key}: a study is changed in its file, {path}, not on the command line")
        elif key not in SITE and key not in ("study", "rehearse"):
            raise ConfigError(f"--config: {unknown('key', key, [*SITE, 'study', 'rehearse'])}")
    if (rehearse := str(config.get("rehearse", False)).lower()) not in ("true", "false"):
        raise ConfigError(f"--config rehearse: true or false is expected, not {config['rehearse']!r}")
    return rehearsal_of(study, anew) if rehearse == "true" else study


def rehearsal_of(study: Study, anew: bool) -> Study:
    """The rehearsal of a study, a file of its own; ``anew``: written as the study is now, which takes torch."""
    if anew:
        from sat_core.runs.rehearsal import write

        write(study)
    return Study(study.rehearsal_file)


def of_profile(arguments: Sequence[str]) -> dict[str, Any]:
    """What a command line's profile says under ``config``, which a ``--config`` beside it makes Snakemake forget."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--profile", default=os.environ.get("SNAKEMAKE_PROFILE"))
    name = parser.parse_known_args(arguments)[0].profile
    path = Path(name or "", "config.yaml")
    return site_of(path) if name and path.exists() else {}


def site_of(path: Path) -> dict[str, Any]:
    """The site's settings in a profile's file: the entries of its ``config``, ``key=value`` each."""
    said = (read_yaml(path) or {}).get("config") or []
    pairs = said.items() if isinstance(said, Mapping) else [str(entry).partition("=")[::2] for entry in said]
    return {key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in pairs}


def limits() -> dict[str, Any]:
    """What the profile ``slurm`` of this folder limits, if there is one: ``jobs`` in the queue, and their size."""
    path = Path("slurm/config.yaml")
    if not path.exists():
        return {}
    found = site_of(path)
    for key in ("max_minutes", "max_mem_mb"):
        found[key] = site(found, key, sys.maxsize)
    jobs = (read_yaml(path) or {}).get("jobs")
    return found | {"jobs": jobs if isinstance(jobs, int) else None}  # `unlimited`, Snakemake says


def check_once(study: Study) -> None:
    """Check every run; as that builds every network, once is enough for the same runs, code and torch."""
    own = {name for run in study.runs for name in own_code(run)}
    checks = json.dumps(code("runs.check", *sorted(own)))
    known = [metadata.version("torch"), checks, *(run.model_dump_json() for run in study.runs)]
    folder.claim(study)
    text = hashlib.sha256("\n".join(known).encode()).hexdigest()
    record = study.folder / ".checked"
    if not record.exists() or record.read_text() != text:
        from sat_core.runs.check import check

        check(study, study.runs)
        with atomic(record) as file:
            file.write(text)


def tell_without_gpu(study: Study) -> None:
    """Say at once where trainings that ask for hours of a GPU are to be computed by a machine that has none."""
    if any(map(os.path.exists, DRIVERS)):
        return
    long = (run for run in study.runs if run.resources.gpus and run.resources.train_minutes > HOUR)
    if not all((run.folder / folder.STAGES["train"].record).exists() for run in long):
        log.warning("no GPU is seen on this machine: its processors will train (on a cluster: --profile slurm)")


def site(config: Mapping[str, Any], key: str, default: T) -> T:
    """A setting of the machine, of the type of ``default``."""
    value = config.get(key, default)
    value = "" if value is None and default == SITE["gres"] else value  # `gres=`: none is asked for
    if type(value) is not type(default):
        kind = "a word, such as gpu:1," if isinstance(default, str) else "a whole number"
        raise ConfigError(f"config: {key}: {kind} is expected, not {value!r}")
    return value


def results_of(study: Study, table: str, *stages: str) -> list[str]:
    """The records of these stages, of every run of a table that has them."""
    asked = study.file.tables[table]
    return [
        f"{study.folder}/runs/{id.path}/{folder.STAGES[stage].record}"
        for stage in stages
        for id in getattr(asked, folder.STAGES[stage].ids)
    ]


def targets(study: Study) -> list[str]:
    """Everything that the study asks for but the report.

    The runs' results stand among them although tables need them: a deleted one is then made again.
    """
    runs = [name for table in study.file.tables for name in results_of(study, table, "train", "evaluate")]
    made = [str(product.files[0]) for product in products.of(study).values()]
    return [*dict.fromkeys(runs), *made]


def stale(study: Study) -> dict[str, str]:
    """Files that are there but not of the present settings, images and code -> what is to be redone, and why."""
    found: dict[str, str] = {}
    for dataset, run in {run.dataset: run for run in study.runs}.items():
        record = folder.data_record(run)
        if record and (reasons := changes(record["made_of"], run, "data")):
            found[str(folder.data_file(run).with_suffix(".json"))] = f"data of {dataset} again: {'; '.join(reasons)}"
    for run in study.runs:
        if not run.folder.is_dir():
            continue
        for stage in folder.stages_of(study, run.id):
            if reasons := folder.why_again(run, stage):
                result = run.folder / folder.STAGES[stage].record
                found[str(result)] = f"{stage} {run.id.path} again: {'; '.join(reasons)}"
                if stage == "train":
                    break  # all else is redone anyway
    memo: products.Memo = {}
    for name, product in [*products.of(study, memo).items(), ("report.html", products.report(study, memo))]:
        if product.files[0].exists() and not product.is_current():
            found[str(product.files[0])] = f"{name} again: its results, its settings or its code are others"
    return found


def to_redo(study: Study) -> set[str]:
    """The stale files, after saying in a line each why they are."""
    found = stale(study)
    for why in found.values():
        log.warning(why)
    for run in study.runs:
        if began_otherwise(run):
            log.warning(f"train {run.id.path} {ANEW}")
    return set(found)


def failures(study: Study) -> list[str]:
    """The runs that have failed, a sentence each, as `status` has it."""
    return [f"{state.run.id.path}: {state.text}" for state in look(study).states if state.word == "failed"]


def restarts(study: Study, rule: str, run: str | None, budget: int) -> int:
    """How often Snakemake may try a job again: not at all what is finished or cannot succeed.

    Being stopped by a time limit, with progress saved, is not among the failures that ``budget`` counts.
    """
    stage = rule.removesuffix("_shard")
    if run is None or stage not in folder.STAGES:
        return budget
    asked = study.run(run)
    if any(folder.hopeless(asked, before) for before in ("train", stage)) or folder.is_current(asked, stage):
        return 0
    return budget + folder.interruptions(asked)


def asked_for(run: Run, setting: str, attempt: int, most: int) -> int:
    """A resource of a run's job: more with each failure, up to what the site allows.

    Of runs that share an allocation, so much that all of them together stay within that: one after the other train,
    judge in shards, judge; side by side judge, measure the curvature, lay planes.
    """
    resources = run.resources
    if resources.gpus and resources.runs_per_gpu > 1:
        most //= 3 * resources.runs_per_gpu if setting == "mem_mb" else 2 + (run.evaluation.shards > 1)
    return min(max(attempt - folder.interruptions(run), 1) * getattr(resources, setting), most)


def shard_files(run: Run) -> list[str]:
    """What the evaluation waits for; with one shard it does all the work itself."""
    n = run.evaluation.shards
    return [f"{run.folder}/shards/{i}-of-{n}" for i in range(1, n + 1)] if n > 1 else []


def sharing(run: Run) -> str | None:
    """Small runs are trained and judged by several in one allocation; a large one has each of its jobs alone."""
    resources = run.resources
    return f"share{resources.runs_per_gpu}" if resources.gpus and resources.runs_per_gpu > 1 else None


def use_this_python() -> None:
    """Let the rules' `python` be the one that runs Snakemake, also where its environment is not activated.

    And let its sat_core be this one, where that is a checkout: a conda environment has the packages, not the project.
    """
    checkout = PACKAGE.parent
    if (checkout / "pyproject.toml").exists():
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    mine = str(Path(sys.executable).parent)
    if Path(shutil.which("python") or "").parent != Path(mine):
        os.environ["PATH"] = f"{mine}{os.pathsep}{os.environ.get('PATH', '')}"


def refuse_pin_files(folder: Path) -> None:
    """Snakemake only warns when one is broken, and then solves the environment anew: other versions, silently."""
    if found := sorted(folder.glob("*.pin.txt")):
        raise ConfigError(f"{found[0]}: pin files are not used here, versions stand in the yaml beside it: delete it")


def check_cluster(settings: Any) -> None:
    """Say at once what would otherwise make Snakemake wait for ever; ``settings``: those of the SLURM executor."""
    if not hasattr(settings, "status_command"):
        return
    if not shutil.which("sbatch"):
        raise ConfigError(
            "sbatch is not on PATH: start this on a login node of a SLURM cluster, or leave out --profile"
        )
    if keeps_accounts():
        return
    if settings.status_command != "squeue":
        raise ConfigError(
            "this cluster keeps no accounting database (sacct fails), so the end of a job would never be noticed: "
            "set `slurm-status-command: squeue` in slurm/config.yaml"
        )
    from snakemake_executor_plugin_slurm.job_status_query import get_min_job_age

    age, interval = get_min_job_age(), settings.init_seconds_before_status_checks
    if not age:
        raise ConfigError("SLURM's controller does not answer (scontrol show config): is this a node of the cluster?")
    if age < 3 * interval:
        raise ConfigError(
            f"this cluster keeps no accounting database and forgets ended jobs after {age} s (MinJobAge): "
            f"set `slurm-init-seconds-before-status-checks` in slurm/config.yaml to {age // 3} or less"
        )


def keeps_accounts() -> bool:
    """Whether SLURM's accounting database answers."""
    try:
        query = ["sacct", "--allocations", "--noheader", "--starttime=now"]
        return subprocess.run(query, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
