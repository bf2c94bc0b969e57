import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(Path(workflow.basedir).parent))

from sat_core.config import ConfigError, Study
from sat_core.provenance import data_digest, evaluation_digest, fingerprint, training_digest


def load_study():
    """The study named by --configfile, checked whole before any job is planned."""
    if len(workflow.configfiles) != 1:
        raise WorkflowError("a study is one file: snakemake --configfile config/<study>.yaml")
    try:
        study = Study(workflow.configfiles[0])
        if workflow.is_main_process:
            from sat_core.files import make_folder
            from sat_core.plan import check

            check(study.runs)
            make_folder(study.folder)
    except ConfigError as error:
        raise WorkflowError(str(error))
    return study


STUDY = load_study()
RESULTS = str(STUDY.folder)
RUN = f"{RESULTS}/runs/{{run}}"


wildcard_constraints:
    run=r"[a-z0-9_-]+/[a-z0-9_-]+/[a-z0-9_-]+/eps[0-9.-]+/seed[0-9]+",
    shard=r"[0-9]+-of-[0-9]+",
    table=r"[a-z0-9_-]+",
    kind="curves|tradeoff",


def run_of(wildcards):
    return STUDY.run(wildcards.run)


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


def threads_of(wildcards):
    return run_of(wildcards).resources.threads


def run_files(wildcards, name):
    ids = STUDY.file.tables[wildcards.table].run_ids
    return [f"{RESULTS}/runs/{id.path}/{name}" for id in ids]


def table_inputs(wildcards):
    return run_files(wildcards, "autoattack.json")


def figure_inputs(wildcards):
    return run_files(wildcards, "history.csv" if wildcards.kind == "curves" else "autoattack.json")


def table_digest(wildcards):
    return [STUDY.file.tables[wildcards.table].model_dump_json(), fingerprint("tables")]


def figure_digest(wildcards):
    return [STUDY.file.tables[wildcards.table].model_dump_json(), fingerprint("figures")]


def run_results():
    """Named as targets although tables need them: a deleted one is then made again."""
    return [f"{RESULTS}/runs/{path}/{name}" for path in STUDY.run_ids for name in ("run.json", "autoattack.json")]


def tables():
    return [f"{RESULTS}/tables/{name}.md" for name in STUDY.file.tables]


def figures():
    return [f"{RESULTS}/figures/{name}-{kind}.png" for name in STUDY.file.tables for kind in ("curves", "tradeoff")]
