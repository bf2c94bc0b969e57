"""A study in small: what it changes, what it measures, and that it stays a study."""

import copy
import subprocess
import sys
import time

import pytest
import torch
import yaml
from helpers import PSAT, TINY
from PIL import Image
from torch import nn

from sat_core.__main__ import main
from sat_core.attacks import frozen
from sat_core.errors import ConfigError
from sat_core.runs import folder, measure, rehearsal
from sat_core.runs.check import check
from sat_core.runs.data import load
from sat_core.runs.files import read_json
from sat_core.study import Study
from sat_core.workflow import limits, of_profile, open_study

LONG = copy.deepcopy(TINY)
LONG["tables"]["digits"] |= {"defenses": ["madry", "psat", "late", "fat"], "seeds": [3, 4], "curvature": ["psat"]}
LONG["variants"] = {"late": {"defense": "psat", "options": {"curriculum": {"kind": "linear", "epochs": [10, 20]}}}}
LONG["overrides"] = [
    {"set": {"training": {"epochs": 20, "milestones": [5, 0.75], "warm_up": 2, "snapshots": 10}}},
    {"set": {"attack": {"steps": 4}, "evaluation": {"batch_size": 30, "shards": 2}, "data": {"train_images": 800}}},
    {"where": {"defense": "psat"}, "set": {"options": {"curriculum": {"kind": "steps", "epochs": [5, 10]}}}},
    {"where": {"seed": 4}, "set": {"training": {"lr": 0.01}}},
    {"where": {"seed": [3, 4]}, "set": {"training": {"momentum": 0.8}}},
]
"""Epochs as numbers, a variant with a schedule of its own, seeds that are not rehearsed."""


@pytest.fixture
def small(write_study) -> Study:
    """The rehearsal of LONG."""
    return Study(rehearsal.write(Study(write_study(LONG, "long"))))


def test_every_cell_is_rehearsed_once_with_its_first_seed(small):
    assert [id.path for id in small.run_ids.values()] == [
        f"digits/cnn/{defense}/eps0.3/seed3" for defense in ("madry", "psat", "late", "fat")
    ]
    check(small, small.runs)
    assert small.rehearsed.name == "long" and small.folder.name == small.name == "long-rehearsal"


def test_schedules_keep_their_proportions_and_batches_their_size(small):
    for run in small.runs:
        assert (run.training.epochs, run.training.milestones, run.training.snapshots) == (2, [0.25, 0.75], 2)
        assert (run.training.batch_size, run.training.momentum, run.training.lr) == (64, 0.8, 0.05)
        assert (run.evaluation.batch_size, run.evaluation.images, run.evaluation.shards) == (30, 8, 1)
        assert run.evaluation.iterations == 10
        assert run.data.train_images == 143  # two batches of 64, and a tenth beside them
    curricula = {run.defense: run.options.get("curriculum") for run in small.runs}
    assert curricula["psat"] == {"kind": "steps", "epochs": [0.25, 0.5]}
    assert curricula["late"] == {"kind": "linear", "epochs": [0.5, 1.0]}


def test_a_schedule_that_two_epochs_cannot_hold_gets_more(write_study):
    study = copy.deepcopy(TINY)
    study["tables"]["digits"]["defenses"] = ["pas"]
    ends = {"where": {"defense": "pas"}, "set": {"options": {"ends": [2, 4, 6, 8]}}}
    study["overrides"] = [{"set": {"training": {"epochs": 8}}}, ends]
    (run,) = Study(rehearsal.write(Study(write_study(study)))).runs
    assert (run.training.epochs, run.options["ends"]) == (4, [0.25, 0.5, 0.75, 1.0])


def test_few_images_are_taken_as_they_are_and_many_classes_ask_for_more(write_study):
    study = Study(write_study())
    (run, *_) = study.runs
    assert rehearsal.train_images([run]) == 143
    classes = run.model_copy(update={"data": run.data.model_copy(update={"classes": 100})})
    assert rehearsal.train_images([classes]) == 1000  # each class once among the tenth that is held out
    large = run.model_copy(update={"training": run.training.model_copy(update={"batch_size": 700})})
    assert rehearsal.train_images([large]) is None


def test_a_dataset_that_is_not_there_is_a_sentence(write_study):
    data = {"source": "folder", "root": "nowhere", "classes": 10, "train_images": 100}
    study = Study(write_study(TINY | {"overrides": [*TINY["overrides"], {"set": {"data": data}}]}))
    with pytest.raises(ConfigError, match="digits: there are no images under nowhere/train and nowhere/test to count"):
        rehearsal.write(study)


def test_what_does_not_fit_is_measured_in_halves():
    def piece(images):
        if images > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images / 2

    assert measure.as_many_as_fit(piece, 12, torch.device("cpu")) == (1.5, 3)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure.as_many_as_fit(lambda _: piece(9), 12, torch.device("cpu"))


def test_a_rare_class_stands_on_both_sides_of_the_split(write_study, tmp_path):
    for part, counts in {"train": (3, 60, 60, 60), "test": (2, 2, 2, 2)}.items():
        for label, count in enumerate(counts):
            (tmp_path / "pictures" / part / str(label)).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), 10 * label).save(tmp_path / "pictures" / part / str(label) / f"{i}.png")
    (tmp_path / "datasets").mkdir()
    mine = {"data": {"source": "folder", "root": "pictures", "image": [1, 8, 8]}}
    mine |= {"training": {"epochs": 9, "lr": 0.1, "batch_size": 2}, "validation": {"fraction": 0.5}}
    (tmp_path / "datasets/mine.yaml").write_text(yaml.safe_dump(mine))
    study = {"tables": {"t": TINY["tables"]["digits"] | {"dataset": "mine", "defenses": ["madry"]}}}
    (run,) = Study(rehearsal.write(Study(write_study(study)))).runs
    assert run.data.train_images is None  # one of 61 is of the rare class, and there are only 183
    train, validation = load(run, "train", "validation")
    assert train.labels.unique().tolist() == validation.labels.unique().tolist() == [0, 1, 2, 3]


def test_the_file_is_written_only_where_it_says_something_else(write_study):
    study = Study(write_study())
    path = rehearsal.write(study)
    before = path.stat().st_mtime_ns
    assert rehearsal.write(study) == path and path.stat().st_mtime_ns == before
    path.write_text("tables: {}\n")
    assert Study(rehearsal.write(study)).rehearsed.path.resolve() == study.path.resolve()


def test_plugins_and_datasets_are_found_from_where_the_study_is(write_study, tmp_path):
    (tmp_path / "datasets").mkdir()
    mine = {"data": {"source": "digits", "image": [1, 8, 8], "classes": 10}, "training": {"epochs": 9, "lr": 0.1}}
    (tmp_path / "datasets/mine.yaml").write_text(yaml.safe_dump(mine))
    (tmp_path / "own.py").write_text(
        "from sat_core.defenses import Defense\nfrom sat_core.fields import When\n\n\n"
        "class Late(Defense):\n    start: When = 1\n"
    )
    study = {
        "plugins": ["own.py"],
        "tables": {"t": TINY["tables"]["digits"] | {"dataset": "mine", "defenses": ["late"]}},
    }
    study["overrides"] = [{"set": {"options": {"start": 3}}}]
    (run,) = Study(rehearsal.write(Study(write_study(study)))).runs
    assert run.options == {"start": pytest.approx(1 / 3)} and run.training.epochs == 2


def test_results_may_lie_elsewhere_behind_a_symlink(write_study, tmp_path):
    """As with a small home; ``..`` then leads from where the folder really is."""
    (tmp_path / "scratch/of/mine").mkdir(parents=True)
    (tmp_path / "results").symlink_to(tmp_path / "scratch/of/mine")
    (tmp_path / "linked.py").write_text(
        "from sat_core.defenses import Defense\n\n\nclass Mine(Defense):\n    weight: float = 1\n"
    )
    table = TINY["tables"]["digits"] | {"defenses": ["madry", "mine"]}
    study = Study(write_study({"plugins": ["linked.py"], "tables": {"t": table}}))
    small = Study(rehearsal.write(study))
    assert small.rehearsed.path.samefile(study.path) and len(small.runs) == 2
    assert rehearsal.is_current(study)


def test_what_a_job_asks_for_needs_no_other_rehearsal(write_study):
    study = Study(write_study(LONG, "long"))
    rehearsal.write(study)
    for resources, current in (({"mem_mb": 500, "train_minutes": 9}, True), ({"threads": 2, "mem_mb": 500}, False)):
        changed = Study(
            write_study(LONG | {"overrides": [*LONG["overrides"], {"set": {"resources": resources}}]}, "long")
        )
        assert rehearsal.is_current(changed) == current
        assert "mem_mb: 500" in rehearsal.write(changed).read_text()  # a rehearsal's own jobs ask for it, too
        rehearsal.write(study)


def test_rehearse_is_a_word_of_the_command_line(write_study):
    path = write_study()
    content = yaml.safe_load(path.read_text())
    assert open_study([str(path)], content).name == "tiny"
    assert open_study([str(path)], content | {"rehearse": "true"}).name == "tiny-rehearsal"
    with pytest.raises(ConfigError, match="--config rehearse: true or false is expected, not 'yes'"):
        open_study([str(path)], content | {"rehearse": "yes"})


def test_what_a_profile_says_of_the_site_is_read_again(tmp_path):
    (tmp_path / "config.yaml").write_text("config: [gres=gpu:a100:1, max_minutes=1440]\n")
    assert of_profile(["--profile", str(tmp_path), "-n"]) == {"gres": "gpu:a100:1", "max_minutes": 1440}
    assert of_profile(["-n"]) == {}


def test_what_takes_a_processor_long_is_timed_once(monkeypatch):
    monkeypatch.setattr(measure, "SLOW", 0.01)
    calls = []
    assert measure.seconds(lambda: calls.append(time.sleep(0.02))) >= 0.02 and len(calls) == 1
    assert measure.seconds(lambda: calls.append(None), least=0.01) < 0.01 and len(calls) > 3
    monkeypatch.setattr(measure, "SLOW", 5.0)
    calls.clear()
    assert measure.seconds(lambda: calls.append(time.sleep(0.02)), least=0.01) >= 0.02 and len(calls) == 2


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("", {"max_minutes": sys.maxsize, "max_mem_mb": sys.maxsize, "jobs": None}),
        ("jobs: unlimited\nconfig: [gres, max_minutes=60]", {"max_minutes": 60, "jobs": None}),
        ("jobs: 7\nconfig: {max_minutes: lots}", "config: max_minutes: a whole number is expected, not 'lots'"),
    ],
)
def test_a_profile_limits_the_plan_or_gets_its_sentence(tmp_path, monkeypatch, profile, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/config.yaml").write_text(profile)
    if isinstance(expected, dict):
        assert expected.items() <= limits().items()
    else:
        with pytest.raises(ConfigError, match=expected):
            limits()


def test_judging_in_a_rehearsal_measures_what_everything_costs(small, capsys):
    address = "digits/cnn/psat/eps0.3/seed3"
    for verb in ("train", "evaluate"):
        assert main([verb, "--study", str(small.path), "--run", address]) == 0
    path = small.run(address).folder / folder.MEASURED
    found, before = read_json(path), path.stat().st_mtime_ns
    assert set(found["judging"]) == {"apgd-ce", "apgd-t", "fab-t", "square"}
    blocks = [block for attack in found["judging"].values() for block in attack]
    assert len(blocks) == 12 and {n for n, _ in blocks} == {1, 4, 30}
    times = [found["validation"], *found["curvature"].values(), *(time for _, time in blocks)]
    times += [cost for kind in found["training"].values() for cost in kind.values()]
    assert len(times) == 19 and all(0 < time < 60 for time in times)
    assert found["startup"] > 0
    assert found["memory_mb"]["training"]["main"] > 100
    code = "import sys; from sat_core.__main__ import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    again = [sys.executable, "-c", code, "evaluate", "--study", str(small.path), "--run", address]
    assert subprocess.run(again, timeout=60).returncode == 0  # which needs no torch to find that all is done
    assert path.stat().st_mtime_ns == before  # measured once for these weights
    verdict = read_json(small.run(address).folder / "autoattack.json")
    assert verdict["version"] == "standard, cut to 10 iterations an attack" and verdict["n"] == 8
    assert main(["plan", "--study", "long.yaml"]) == 0
    said = capsys.readouterr().out
    assert "digits/cnn/psat/eps0.3" in said and "digits/cnn/fat/eps0.3 is not in this: its rehearsal is not" in said


def test_what_a_training_computes_in_is_left_behind_before_judging_is_timed(small, monkeypatch):
    address, real, found = "digits/cnn/psat/eps0.3/seed3", measure.judging, []
    times = {kind: {"whole": 1.0, "half": 1.0} for kind in ("first", "last")}
    monkeypatch.setattr(measure, "training", lambda _: torch.set_float32_matmul_precision("high") or times)
    monkeypatch.setattr(measure, "judging", lambda *a: found.append(torch.get_float32_matmul_precision()) or real(*a))
    for verb in ("train", "evaluate"):
        assert main([verb, "--study", str(small.path), "--run", address]) == 0
    assert found == ["highest"]


def test_attacks_that_take_long_are_not_timed_on_whole_blocks(monkeypatch):
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.rand(16, 1, 8, 8)
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "SLOW", 0.0)
    with frozen(model):
        assert [[n for n, _ in blocks] for blocks in measure.judging(model, x, 10).values()] == [[1]] * 4


def test_outside_a_rehearsal_nothing_is_measured(judged):
    assert not (judged.run(PSAT).folder / folder.MEASURED).exists() and judged.rehearsed is None
