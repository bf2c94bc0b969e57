import gc
import hashlib
import inspect
import shutil
import signal
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, str(Path(workflow.basedir).parent))

from sat_core.config import PARTS, ConfigError, Study
from sat_core.kinds import FIGURES
from sat_core.provenance import data_digest, evaluation_digest, fingerprint, training_digest


def check_once(study):
    """Check every run; as that builds every network, once is enough for the same runs, code and torch."""
    from sat_core.files import atomic, make_folder

    code = fingerprint("plan", *sorted({f"defenses.{run.base}" for run in study.runs}))
    known = [metadata.version("torch"), code, *(run.model_dump_json() for run in study.runs)]
    text = hashlib.sha256("\n".join(known).encode()).hexdigest()
    record = study.folder / ".checked"
    if not record.exists() or record.read_text() != text:
        from sat_core.plan import check

        check(study, study.runs)
        make_folder(study.folder)
        with atomic(record) as file:
            file.write(text)


def load_study():
    """The study named by --configfile, checked whole before any job is planned."""
    if len(workflow.configfiles) != 1:
        raise WorkflowError("a study is one file: snakemake --configfile config/<study>.yaml")
    try:
        study = Study(workflow.configfiles[0])
        if workflow.is_main_process:
            check_once(study)
    except ConfigError as error:
        raise WorkflowError(str(error))
    return study


def refuse_pin_files():
    """Snakemake only warns when a pin file is broken, and then solves the environment anew: other versions, silently."""
    if found := sorted((Path(workflow.basedir).parent / "envs").glob("*.pin.txt")):
        raise WorkflowError(f"{found[0]}: pin files are not used here, versions stand in the yaml beside it: delete it")


def do_without_conda():
    """A profile that asks for conda also works where there is none, in the Python that runs Snakemake, and says so."""
    methods = workflow.deployment_settings.deployment_method
    if DeploymentMethod.CONDA in methods and not shutil.which("conda"):
        methods.discard(DeploymentMethod.CONDA)
        logger.warning(f"conda is not on PATH: the rules run in {sys.prefix}, which `make setup` made from uv.lock.")


def site(key, default):
    """A setting of the machine, from `config` of a profile."""
    value = config.get(key, default)
    if type(value) is not type(default):
        raise WorkflowError(f"config: {key}: a value like {default!r} is expected, not {value!r}")
    return value


if workflow.is_main_process:
    do_without_conda()
else:
    # SLURM warns every process of a job step. The training saves a checkpoint on it, and Snakemake must live to see that.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

refuse_pin_files()
STUDY = load_study()
GRES = site("gres", "gpu:1")
MAX_MINUTES = site("max_minutes", sys.maxsize)
MAX_MEM_MB = site("max_mem_mb", sys.maxsize)
RESULTS = str(STUDY.folder)
RUN = f"{RESULTS}/runs/{{run}}"


wildcard_constraints:
    run=r"[a-z0-9_-]+/[a-z0-9_-]+/[a-z0-9_-]+/eps[0-9.-]+/seed[0-9]+",
    shard=r"[0-9]+-of-[0-9]+",
    table="|".join(STUDY.file.tables),
    kind="|".join(FIGURES),


@cache
def run_at(path):
    return STUDY.run(path)


def run_of(wildcards):
    return run_at(wildcards.run)


def dataset_record(wildcards):
    return f"{RESULTS}/data/{run_of(wildcards).dataset}.json"


def dataset_digest(wildcards):
    return data_digest(next(run for run in STUDY.runs if run.dataset == wildcards.dataset))


def run_digest(wildcards):
    return training_digest(run_of(wildcards))


def judged_digest(wildcards):
    return evaluation_digest(run_of(wildcards))


def shard_files(wildcards):
    """With one shard the evaluation does all the work itself."""
    n = run_of(wildcards).evaluation.shards
    return [f"{RESULTS}/runs/{wildcards.run}/shards/{i}-of-{n}" for i in range(1, n + 1)] if n > 1 else []


def curvature_digest(wildcards):
    return [run_of(wildcards).curvature.model_dump_json(), fingerprint("curvature")]


def landscape_digest(wildcards):
    run = run_of(wildcards)
    return [run.curvature.model_dump_json(), run.landscape.model_dump_json(), fingerprint("landscape")]


def threads_of(wildcards):
    return run_of(wildcards).resources.threads


def memory_of(wildcards, attempt):
    return min(attempt * run_of(wildcards).resources.mem_mb, MAX_MEM_MB)


def training_minutes(wildcards, attempt):
    return min(attempt * run_of(wildcards).resources.train_minutes, MAX_MINUTES)


def evaluation_minutes(wildcards, attempt):
    return min(attempt * run_of(wildcards).resources.evaluate_minutes, MAX_MINUTES)


def gpu_of(wildcards):
    """As a text, because the jobs of a group share a text where they would add up a number."""
    return GRES if run_of(wildcards).resources.gpus else ""


def sharing(wildcards):
    """Small runs are trained and judged by several in one allocation; a large one has each of its jobs alone."""
    resources = run_of(wildcards).resources
    return f"share{resources.runs_per_gpu}" if resources.gpus and resources.runs_per_gpu > 1 else None


def check_cluster():
    """Say at once, and in one sentence, what would otherwise make Snakemake wait for ever."""
    settings = workflow.executor_settings
    if not hasattr(settings, "status_command"):
        return
    if not shutil.which("sbatch"):
        raise WorkflowError(
            "sbatch is not on PATH: start this on a login node of a SLURM cluster, or leave out --profile"
        )
    if keeps_accounts():
        return
    if settings.status_command != "squeue":
        raise WorkflowError(
            "this cluster keeps no accounting database (sacct fails), so the end of a job would never be noticed: "
            "set `slurm-status-command: squeue` in slurm/config.yaml"
        )
    from snakemake_executor_plugin_slurm.job_status_query import get_min_job_age

    age, interval = get_min_job_age(), settings.init_seconds_before_status_checks
    if not age:
        raise WorkflowError("SLURM's controller does not answer (scontrol show config): is this a node of the cluster?")
    if age < 3 * interval:
        raise WorkflowError(
            f"this cluster keeps no accounting database and forgets ended jobs after {age} s (MinJobAge): "
            f"set `slurm-init-seconds-before-status-checks` in slurm/config.yaml to {age // 3} or less"
        )


def keeps_accounts():
    """Whether SLURM's accounting database answers."""
    try:
        query = ["sacct", "--allocations", "--noheader", "--starttime=now"]
        return subprocess.run(query, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def run_files(table, ids, name):
    return [f"{RESULTS}/runs/{id.path}/{name}" for id in getattr(STUDY.file.tables[table], ids)]


def table_inputs(wildcards):
    return [file for name in ("run.json", "autoattack.json") for file in run_files(wildcards.table, "run_ids", name)]


def figure_inputs(wildcards):
    return drawn_from(wildcards.table, FIGURES[wildcards.kind])


def drawn_from(table, kind):
    return run_files(table, kind.ids, kind.file)


def figure_caption(wildcards):
    return FIGURES[wildcards.kind].caption


def digest_of(name):
    """Of a file of sat_core that is no source, so that no fingerprint holds it."""
    from sat_core.files import checksum

    return checksum(Path(workflow.basedir).parent / "sat_core" / name)


def report_digest(wildcards):
    return [STUDY.file.model_dump_json(), fingerprint("report"), digest_of("report.html.jinja")]


def report_of_what_there_is():
    """After a failure: Snakemake itself makes nothing of which a run is missing."""
    logger.info("The report of what there is:")
    subprocess.run([sys.executable, "-m", "sat_core", "report", "--study", str(STUDY.path)])


def table_digest(wildcards):
    return [STUDY.file.tables[wildcards.table].model_dump_json(), fingerprint("tables"), digest_of("paper.yaml")]


def figure_digest(wildcards):
    return [STUDY.file.tables[wildcards.table].model_dump_json(), fingerprint("figures")]


def run_results():
    """Named as targets although tables need them: a deleted one is then made again."""
    return [f"{RESULTS}/runs/{path}/{name}" for path in STUDY.run_ids for name in ("run.json", "autoattack.json")]


def tables():
    return [f"{RESULTS}/tables/{name}.md" for name in STUDY.file.tables]


def figures():
    """Every kind that has runs to draw; the landscape attacked anew only if asked for by name."""
    return [
        f"{RESULTS}/figures/{name}-{kind}.png"
        for name in STUDY.file.tables
        for kind, about in FIGURES.items()
        if drawn_from(name, about) and not about.on_request
    ]


# Planning ten thousand runs makes millions of objects that live until the end, and asks half a million times for the
# signatures of these functions: together a sixth of the time. Once jobs run, `onstart` lets the collector work again.
gc.disable()
for function in (
    dataset_record,
    run_digest,
    judged_digest,
    curvature_digest,
    landscape_digest,
    threads_of,
    memory_of,
    training_minutes,
    evaluation_minutes,
    gpu_of,
    sharing,
    shard_files,
):
    function.__signature__ = inspect.signature(function)
