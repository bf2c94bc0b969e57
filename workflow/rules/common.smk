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
FIGURES = {  # kind: (field of the table that lists its runs, file of a run that it needs)
    "curves": ("run_ids", "history.csv"),
    "tradeoff": ("run_ids", "autoattack.json"),
    "curvature": ("curvature_ids", "curvature.json"),
    "spectrum": ("curvature_ids", "curvature.json"),
    "landscape": ("landscape_ids", "landscape.npz"),
    "landscape-hessian": ("landscape_ids", "landscape.npz"),
    "landscape-input": ("landscape_ids", "landscape.npz"),
    "landscape-reattacked": ("landscape_ids", "landscape.npz"),
}


wildcard_constraints:
    run=r"[a-z0-9_-]+/[a-z0-9_-]+/[a-z0-9_-]+/eps[0-9.-]+/seed[0-9]+",
    shard=r"[0-9]+-of-[0-9]+",
    table=r"[a-z0-9_-]+",
    kind="|".join(FIGURES),


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


def curvature_digest(wildcards):
    return [run_of(wildcards).curvature.model_dump_json(), fingerprint("curvature")]


def landscape_digest(wildcards):
    run = run_of(wildcards)
    return [run.curvature.model_dump_json(), run.landscape.model_dump_json(), fingerprint("landscape")]


def threads_of(wildcards):
    return run_of(wildcards).resources.threads


def run_files(table, ids, name):
    return [f"{RESULTS}/runs/{id.path}/{name}" for id in getattr(STUDY.file.tables[table], ids)]


def table_inputs(wildcards):
    return run_files(wildcards.table, "run_ids", "autoattack.json")


def figure_inputs(wildcards):
    return run_files(wildcards.table, *FIGURES[wildcards.kind])


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
    """Every kind that has runs to draw; the landscape attacked anew only if asked for by name."""
    return [
        f"{RESULTS}/figures/{name}-{kind}.png"
        for name in STUDY.file.tables
        for kind, needs in FIGURES.items()
        if run_files(name, *needs) and kind != "landscape-reattacked"
    ]
