"""The real Snakemake on a real, small study: what runs, what runs again, and what does not."""

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import REPOSITORY, TINY

from sat_core.report.kinds import FIGURES

SNAKEMAKE = Path(sys.executable).with_name("snakemake")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with a tiny study that has been run once."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("sat_core", "workflow", "config", "profiles", "slurm", "envs"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    study = copy.deepcopy(TINY)
    study["tables"]["digits"] |= {"curvature": ["psat"], "landscapes": ["psat"]}
    study["overrides"].append({"set": {"curvature": {"images": 20, "steps": 3}, "landscape": {"points": 3}}})
    (folder / "config/tiny.yaml").write_text(yaml.safe_dump(study))
    assert "(100%) done" in snakemake(folder)
    return folder


def snakemake(folder: Path, *arguments: str, status: int = 0) -> str:
    command = [SNAKEMAKE, "--configfile", "config/tiny.yaml", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=500)
    output = result.stdout + result.stderr
    assert result.returncode == status, output
    return output


def jobs(output: str) -> dict[str, int]:
    """Rule -> number of jobs, from the statistics that a dry run prints."""
    lines = output.partition("Job stats:")[2].splitlines()[3:]
    rows = [line.split() for line in lines[: next(i for i, line in enumerate(lines) if not line.strip())]]
    return {row[0]: int(row[1]) for row in rows if row[0] not in ("total", "all")}


def test_everything_promised_is_there(project):
    results = project / "results/tiny"
    run = results / "runs/digits/cnn/psat/eps0.3/seed0"
    for name in ("run.json", "history.csv", "checkpoint.pt", "model.safetensors", "autoattack.csv", "autoattack.json"):
        assert (run / name).stat().st_size > 0
    assert (run / "examples.npz").stat().st_size > 0
    assert "<dt>runs complete</dt><dd>2 of 2</dd>" in (results / "report.html").read_text()
    for name in ("curvature.json", "landscape.npz"):  # asked for of one of the two
        assert (run / name).stat().st_size > 0
        assert not (results / "runs/digits/cnn/madry/eps0.3/seed0" / name).exists()
    for name in ("digits", "digits-attacks", "digits-cost"):
        for suffix in ("csv", "md", "tex", "html"):
            assert (results / f"tables/{name}.{suffix}").stat().st_size > 0
    for kind in set(FIGURES) - {"landscape-reattacked"}:
        assert (results / f"figures/digits-{kind}.png").read_bytes().startswith(b"\x89PNG")
        assert (results / f"figures/digits-{kind}.pdf").read_bytes().startswith(b"%PDF")


def test_a_second_run_has_nothing_to_do(project):
    assert "Nothing to be done" in snakemake(project)


def test_snakemakes_own_report_has_every_figure_with_its_caption(project):
    assert "Report created" in snakemake(project, "--report", "snakemake.html")
    text = (project / "snakemake.html").read_text()
    for kind in set(FIGURES) - {"landscape-reattacked"}:
        assert f"digits-{kind}.png" in text and FIGURES[kind].caption.split(".")[0] in text
    assert "digits.html" in text and "report.html" in text


def test_a_deleted_result_is_redone_without_training(project):
    result = project / "results/tiny/runs/digits/cnn/madry/eps0.3/seed0/autoattack.json"
    content = result.read_text()
    result.unlink()
    assert jobs(snakemake(project, "-n")) == {"evaluate": 1, "table": 1, "figure": 2, "report": 1}
    result.write_text(content)
    snakemake(project, "--touch")


def test_a_change_in_the_source_reruns_what_it_touches_and_a_comment_nothing(project):
    source = project / "sat_core/defenses/psat.py"
    original = source.read_text()
    source.write_text(original + "\n# a comment changes nothing\n")
    assert "Nothing to be done" in snakemake(project, "-n")
    source.write_text(original + "\nEXTRA = 1\n")
    assert jobs(snakemake(project, "-n"))["train"] == 1
    source.write_text(original)
    tables = project / "sat_core/tables.py"
    original = tables.read_text()
    tables.write_text(original + "\nEXTRA = 1\n")
    assert jobs(snakemake(project, "-n")) == {"table": 1, "figure": 8, "report": 1}
    tables.write_text(original)


def test_after_a_failure_there_are_tables_with_blanks_and_once_mended_whole_ones(project):
    path = project / "config/failing.yaml"
    diverging = {"where": {"defense": "psat"}, "set": {"training": {"lr": 1e20}}}
    path.write_text(yaml.safe_dump(TINY | {"overrides": [*TINY["overrides"], diverging]}))
    output = snakemake(project, "--configfile", "config/failing.yaml", status=1)
    assert "training diverged" in output
    markdown = project / "results/failing/tables/digits.md"
    text = markdown.read_text()
    assert "| psat      | — " in text and "| madry     | —" not in text and "1 of 2 runs is missing" in text
    report = project / "results/failing/report.html"
    assert "its log ends with “error: training diverged" in report.read_text()
    path.write_text(yaml.safe_dump(TINY))
    snakemake(project, "--configfile", "config/failing.yaml")
    assert "—" not in markdown.read_text() and "<dd>2 of 2</dd>" in report.read_text()
    assert "Nothing to be done" in snakemake(project, "--configfile", "config/failing.yaml")


def test_a_bad_study_stops_before_the_dag(project):
    bad = project / "config/bad.yaml"
    bad.write_text(yaml.safe_dump({"tables": {"t": TINY["tables"]["digits"] | {"defenses": ["madri"]}}}))
    output = snakemake(project, "--configfile", "config/bad.yaml", status=1)
    assert "unknown defense 'madri'; did you mean 'madry'?" in output
    assert "Traceback" not in output and "Building DAG" not in output
    assert not (project / "results/bad").exists()


def test_a_pin_file_is_refused_because_a_broken_one_would_only_warn(project):
    pins = project / "envs/sat-core.linux-64.pin.txt"
    pins.write_text("@EXPLICIT\n")
    output = snakemake(project, "-n", status=1)
    assert "pin files are not used here" in output and "Traceback" not in output
    pins.unlink()
