"""The real Snakemake on a real, small study: what runs, what runs again, and what does not."""

import copy
import re
import subprocess

import pytest
import yaml
from helpers import MADRY, PSAT, REPOSITORY, SNAKEMAKE, TINY, Project, jobs

from sat_core.report.kinds import FIGURES


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with a tiny study that has failed at first (see ``failed``), was mended and run again."""
    mended = copy.deepcopy(TINY)
    mended["tables"]["digits"] |= {"curvature": ["psat"], "landscapes": ["psat"]}
    mended["overrides"].append({"set": {"curvature": {"images": 20, "steps": 3}, "landscape": {"points": 3}}})
    diverging = {"where": {"defense": "psat"}, "set": {"training": {"lr": 1e20}}}
    failing = mended | {"overrides": [*mended["overrides"], diverging]}
    made = Project(tmp_path_factory.mktemp("project") / "here", failing, "tiny")
    made.failed = {"said": made.snakemake(status=1)}
    for name in ("tables/digits.md", "report.html"):
        made.failed[name] = (made.results / name).read_text()
    made.study("tiny").write_text(yaml.safe_dump(mended))
    said = made.snakemake()
    assert "(100%) done" in said and "when the DAG was created" not in said
    return made


def test_after_a_failure_there_are_tables_with_blanks_and_once_mended_whole_ones(project):
    said = project.failed["said"]
    assert f"{PSAT}: train: training diverged" in said[said.rindex("The report of") - 500 :]
    text = project.failed["tables/digits.md"]
    assert re.search(r"\| P-SAT +\| — ", text) and "1 of 2 runs is missing" in text
    assert not re.search(r"\| Madry \S+ \S+ \S+ +\| —", text)
    assert "it ended with “training diverged" in project.failed["report.html"]
    assert "—" not in (project.results / "tables/digits.md").read_text()
    assert "<dd>2 of 2</dd>" in (project.results / "report.html").read_text()
    assert "Nothing to be done" in project.snakemake()


def test_everything_promised_is_there(project):
    results = project.results
    run = results / "runs" / PSAT
    for name in ("run.json", "history.csv", "checkpoint.pt", "model.safetensors", "autoattack.csv", "autoattack.json"):
        assert (run / name).stat().st_size > 0
    assert (run / "examples.npz").stat().st_size > 0
    assert "<dt>runs complete</dt><dd>2 of 2</dd>" in (results / "report.html").read_text()
    for name in ("curvature.json", "landscape.npz", "landscape.json"):  # asked for of one of the two
        assert (run / name).stat().st_size > 0
        assert not (results / "runs" / MADRY / name).exists()
    for name in ("digits", "digits-attacks", "digits-cost", "digits-comparisons"):
        for suffix in ("csv", "md", "tex", "html"):
            assert (results / f"tables/{name}.{suffix}").stat().st_size > 0
    for kind in set(FIGURES) - {"landscape-reattacked"}:
        assert (results / f"figures/digits-{kind}.png").read_bytes().startswith(b"\x89PNG")
        assert (results / f"figures/digits-{kind}.pdf").read_bytes().startswith(b"%PDF")
        assert (results / f"figures/digits-{kind}.csv").read_text().count("\n") > 1
    assert "@inproceedings{madry2018," in (results / "tables/references.bib").read_text()


def test_snakemakes_own_report_has_every_figure_with_its_caption(project):
    assert "Report created" in project.snakemake("--report", "snakemake.html")
    text = (project.folder / "snakemake.html").read_text()
    for kind in set(FIGURES) - {"landscape-reattacked"}:
        assert f"digits-{kind}.png" in text and FIGURES[kind].caption.split(".")[0] in text
    assert "digits.html" in text and "report.html" in text


def test_a_deleted_result_is_put_back_and_not_made_again(project):
    runs = [project.results / "runs" / run for run in (MADRY, PSAT)]
    deleted = [
        run / name for run in runs for name in ("run.json", "model.safetensors", "history.csv", "autoattack.json")
    ]
    content = [path.read_bytes() for path in deleted]
    for path in deleted:
        path.unlink()
    assert "Nothing to be done" in project.snakemake("-n")  # tables neither: what they are made of is the same
    assert [path.read_bytes() for path in deleted] == content


def test_a_verb_that_finds_its_result_deleted_puts_it_back_in_no_time(project):
    run = project.results / "runs" / PSAT
    for name in ("run.json", "model.safetensors", "history.csv"):
        (run / name).unlink()
    seconds = "import time; began = time.perf_counter(); main(sys.argv[1:]); print(time.perf_counter() - began)"
    words = ["train", "--study", "config/tiny.yaml", "--run", PSAT]
    said = project.python("-c", f"import sys; from sat_core.__main__ import main; {seconds}", *words)
    assert float(said) < 1 and (run / "model.safetensors").exists()
    assert "Nothing to be done" in project.snakemake("-n")


def test_a_change_in_how_tables_are_made_remakes_them_and_trains_nothing(project):
    source = project.folder / "sat_core/report/tables.py"
    original = source.read_text()
    source.write_text(original + "\n# a comment changes nothing\n")
    assert "Nothing to be done" in project.snakemake("-n")
    source.write_text(original + "\nEXTRA = 1\n")
    said = project.snakemake("-n")
    assert jobs(said) == {"table": 1, "compare": 1, "report": 1}
    assert "tables/digits again: its results, its settings or its code are others" in said
    source.write_text(original)


def test_a_bad_study_stops_before_the_dag(project):
    bad = project.study("bad")
    bad.write_text(yaml.safe_dump({"tables": {"t": TINY["tables"]["digits"] | {"defenses": ["madri"]}}}))
    output = project.snakemake("--configfile", "config/bad.yaml", status=1)
    assert "unknown defense 'madri'; did you mean 'madry'?" in output
    assert "Traceback" not in output and "Building DAG" not in output
    assert not (project.folder / "results/bad").exists()


def test_a_pin_file_is_refused_because_a_broken_one_would_only_warn(project):
    pins = project.folder / "envs/sat-core.linux-64.pin.txt"
    pins.write_text("@EXPLICIT\n")
    output = project.snakemake("-n", status=1)
    assert "pin files are not used here" in output and "Traceback" not in output
    pins.unlink()


def test_a_config_that_nobody_would_read_is_refused(project):
    said = project.snakemake("-n", "--config", "max_minuets=10", status=1)
    assert "--config: unknown key 'max_minuets'; did you mean 'max_minutes'?" in said and "Traceback" not in said
    said = project.snakemake("-n", "--config", "overrides=[]", status=1)
    assert "--config overrides: a study is changed in its file" in said and "Traceback" not in said
    assert "Nothing to be done" in project.snakemake("-n", "--config", "max_minutes=10")


def test_the_workflow_is_a_module_of_another(tmp_path):
    (tmp_path / "Snakefile").write_text(
        f'module sat:\n    snakefile: "{REPOSITORY}/workflow/Snakefile"\n'
        f'    config: {{"study": "{REPOSITORY}/config/demo.yaml"}}\n\n'
        "use rule * from sat\n\n"
        'rule mine:\n    default_target: True\n    input: "results/demo/report.html"\n'
    )
    done = subprocess.run([SNAKEMAKE, "-n", "--quiet", "rules"], cwd=tmp_path, capture_output=True, text=True)
    planned = jobs(done.stdout + done.stderr)
    assert planned.pop("mine") == 1
    assert planned == {"data": 1, "train": 14, "evaluate": 14, "curvature": 4, "landscape": 4, "figure": 10} | {
        "table": 1,
        "compare": 1,
        "report": 1,
    }
