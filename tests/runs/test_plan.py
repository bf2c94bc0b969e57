"""What a study will take, against sums done by hand; and what to set where it does not fit."""

import copy
import re

import pandas as pd
import pytest
import yaml
from helpers import MADRY, PSAT, TINY, write_run

from sat_core.__main__ import main
from sat_core.errors import ConfigError
from sat_core.judge import ATTACKS
from sat_core.runs import folder, needs, predict
from sat_core.runs.files import write_json
from sat_core.runs.plan import (
    STANDARD_PASSES,
    Cell,
    cell_of,
    comparison,
    cost,
    duration,
    forward_flops,
    guess,
    makespan,
    plan,
    shown,
)
from sat_core.runs.predict import Costs, Span
from sat_core.runs.rehearsal import write
from sat_core.study import Run, Study

MEASURED = {
    "format": folder.MEASURED_FORMAT,
    "device": "a machine",
    "startup": 5.0,
    "weights": None,
    "sizes": [12, 12, 100, 100],
    "left": [],
    "too_large": [],
    "memory_mb": {piece: {"main": 1000.0 if piece == "judging" else 900.0} for piece in predict.WORK},
    "training": {"first": {"whole": 0.4, "half": 0.3}, "last": {"whole": 0.2, "half": 0.2}},
    "validation": 0.01,
    "judging": {a: [[1, s]] for a, s in zip(ATTACKS, (1.0, 9.0, 18.0, 12.0), strict=True)},
    "curvature": {"product": 0.1, "loss": 0.01},
}


def costs(run, **changes) -> Costs:
    return Costs(run, MEASURED | changes)


@pytest.fixture
def paced(write_study) -> Study:
    """A study in which P-SAT's lambda is below its end in the first of two epochs."""
    study = TINY | {"overrides": [*TINY["overrides"][:1]]}
    curriculum = {"kind": "steps", "epochs": [0, 1], "stop": 0.9}
    study["overrides"].append({"where": {"defense": "psat"}, "set": {"options": {"curriculum": curriculum}}})
    return Study(write_study(study))


def test_operations_and_parameters_of_the_small_network_are_those_counted_by_hand(tiny):
    run = next(iter(tiny.runs))
    convolutions = 16 * 9 * 1 * 64 + 32 * 9 * 16 * 16 + 64 * 9 * 32 * 4
    weights = 16 * 9 + 32 * 9 * 16 + 64 * 9 * 32 + 256 * 10
    assert forward_flops(run) == (2 * (convolutions + 256 * 10), weights + 16 + 32 + 64 + 10)


def test_a_guess_is_steps_times_images(tiny):
    run = next(iter(tiny.runs))  # two epochs, PGD of two steps, a tenth held out
    passes = 1293 * (2 * 2 + 3) + 144 * (2 * 2 + 2)
    spent = cost(run, 10.0, 7)
    assert spent["training"] == pytest.approx(10 * passes * 2)
    assert spent["AutoAttack <="] == 10 * 12 * STANDARD_PASSES
    assert spent["bytes"] == 4 * 7 * 8
    fewer = run.model_copy(update={"data": run.data.model_copy(update={"train_images": 100})})
    assert cost(fewer, 10.0, 7)["training"] == pytest.approx(10 * 2 * (90 * 7 + 10 * 6))


def test_without_a_rehearsal_the_plan_says_that_it_guesses_for_processors_too(tiny, capsys):
    assert main(["plan", "--study", str(tiny.path)]) == 0
    said = capsys.readouterr().out
    header, row = said.splitlines()[0], said.splitlines()[3]
    assert "training on a GPU" in header and "training on a core" in header and row.startswith("all")
    assert main(["plan", "--study", str(tiny.path), "--gpus", "8"]) == 0
    assert re.search(r"with 8 at a time, each .* on a GPU or .* on a core", capsys.readouterr().out)
    assert main(["plan", "--study", str(tiny.path), "--write"]) == 2
    assert "--write writes what a rehearsal has measured, and there is none" in capsys.readouterr().err
    assert "A guess, no measurement" in said and "--config rehearse=true" in said and " 0.0 " not in guess(tiny)


def test_a_training_is_its_epochs_by_kind_and_its_validation(paced):
    run = paced.run(PSAT)
    span = predict.training(run, costs(run))
    steps, validated = 1293 / 64, 2 * 144 * 0.01
    assert span.high == pytest.approx(steps * (0.4 + 0.2) + validated)
    likely = steps * (0.4 - 0.05 + 0.2) + validated * (0.4 + 0.6 / 2)  # three quarters of the steps
    assert span.likely == pytest.approx(likely)
    assert span.low == pytest.approx(steps * (0.4 - 0.2 + 0.2) + validated * 0.4)
    assert predict.training(paced.run(MADRY), costs(run)).high == pytest.approx(steps * 2 * 0.2 + validated)


def test_a_training_as_it_came_takes_its_own_share_of_steps(paced):
    run = paced.run(PSAT)
    history = pd.DataFrame({"steps": [1.0, 2.0], "validation_robust": [0.5, 0.0]})  # of two
    expected = 1293 / 64 * (0.3 + 0.2) + 144 * 0.01 * (0.4 + 0.6 / 2 + 0.4)
    assert predict.training_as_it_came(run, costs(run), history) == pytest.approx(expected)


def test_judging_is_between_the_first_attack_and_all_of_them(paced):
    run = paced.run(PSAT)  # 12 images
    assert predict.judging(run, costs(run)) == Span(12 * 1.0, 12 * 20.5, 12 * 40.0)
    both = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"weights": ["best", "last"]})})
    assert predict.judging(both, costs(run)).high == 2 * 12 * 40.0
    plain = run.model_copy(update={"base": "standard"})
    assert predict.judging(plain, costs(run)).likely == 12.0  # nothing is supposed to stand
    verdict = {"n": 12, "clean": 1.0, "after": {"apgd-ce": 0.5, "apgd-t": 0.5, "fab-t": 0.5, "square": 0.25}}
    blocks = costs(run, judging={attack: [[1, 2.0], [4, 2.0]] for attack in ATTACKS})
    small = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"batch_size": 5})})
    assert predict.judging(small, blocks) == Span(3 * 2.0, 3 * 8.0, 3 * 8.0)  # of which none stands is not attacked
    all_fall = {"n": 12, "clean": 1.0, "after": {"apgd-ce": 1.0, "apgd-t": 0.0, "fab-t": 0.0, "square": 0.0}}
    assert predict.judging_as_it_came(small, blocks, all_fall) == pytest.approx(3 * (2.0 + 0.3 * 2.0))
    came = predict.judging_as_it_came(run, costs(run), verdict)
    assert came == pytest.approx(12 * (1.0 + 0.5 * 9 + 0.5 * 18 + 12 * (0.25 + 0.5 * 0.25)))


def test_curvature_is_products_of_the_hessian_and_planes_are_losses(write_study):
    changed = {"set": {"curvature": {"images": 100}, "landscape": {"points": 5}}}
    run = Study(write_study(TINY | {"overrides": [*TINY["overrides"], changed]})).run(PSAT)
    attack = 100 * 0.01
    measured = predict.curvature(run, costs(run), frozenset({"curvature"}))
    assert measured.high == pytest.approx(100 * 0.1 * (40 * (1 + 3) + 20) + attack)
    assert measured.low == pytest.approx(100 * 0.1 * (5 + 3 * 40 + 20) + attack)
    planes = predict.curvature(run, costs(run), frozenset({"landscape"}))
    assert planes.high == pytest.approx(100 * 0.1 * 40 + attack + 100 * 0.01 * 3 * 25)
    assert predict.curvature(run, costs(run), frozenset()).high == 0
    assert predict.curvature(run, costs(run, curvature=None), frozenset({"curvature"})).high == 0


def test_the_last_is_done_when_the_longest_go_first():
    assert makespan([3, 3, 2, 2, 2], 2) == 7 and makespan([3, 3, 2], 3) == 3 and makespan([1, 1], 1) == 2


def test_durations_have_two_digits_that_count():
    found = [duration(s) for s in (0.25, 5, 45, 150, 1500, 9000, 4e5)]
    assert found == ["<1 s", "5.0 s", "45 s", "2.5 min", "25 min", "2.5 h", "111 h"]
    assert shown(Span(60, 60, 60)) == "60 s" and shown(Span(10, 30, 60)) == "30 s (10 s to 60 s)"


def cells_of(study: Study, **changes) -> list[Cell]:
    return [cell_of(study, [run], costs(run, **changes)) for run in study.runs]


def test_what_does_not_fit_is_said_with_what_to_set_and_written_where_the_study_reads_it(paced):
    slow = {"judging": {attack: [[1, 60 * seconds]] for attack, ((_, seconds),) in MEASURED["judging"].items()}}
    found = needs.misfits(cells_of(paced, **slow), {"max_minutes": 1440})
    (minutes,) = [misfit for misfit in found if "evaluate_minutes" in misfit.said]
    assert minutes.said == "digits/cnn: evaluate_minutes 20, but more than that is needed: 601"
    assert minutes.resources == {"evaluate_minutes": 601}  # 12 images, 40 minutes each, five quarters of it, the start
    needs.write(paced, found)
    again = Study(paced.path)
    assert all(run.resources.evaluate_minutes == 601 and run.resources.threads == 1 for run in again.runs)
    assert not [misfit for misfit in needs.misfits(cells_of(again, **slow), {}) if "evaluate" in misfit.said]
    needs.write(again, [needs.Misfit("digits", "cnn", "", {"mem_mb": 3000})])
    assert {(run.resources.evaluate_minutes, run.resources.mem_mb) for run in Study(paced.path).runs} == {(601, 3000)}


def test_a_block_is_not_divided_among_shards(paced):
    slow = {"judging": {attack: [[1, 60 * seconds]] for attack, ((_, seconds),) in MEASURED["judging"].items()}}

    def minutes(shards: int, batch_size: int) -> int:
        changed = {"shards": shards, "batch_size": batch_size}
        run = paced.run(PSAT).model_copy(update={"evaluation": paced.run(PSAT).evaluation.model_copy(update=changed)})
        return needs.needed_by([cell_of(paced, [run], costs(run, **slow))])["evaluate_minutes"]

    assert minutes(1, 512) == minutes(4, 512) == 601  # of 12 images
    assert minutes(2, 4) == 401 and minutes(3, 4) == 201  # three blocks: two of them, one


def test_what_a_run_takes_on_disk_counts_what_its_rehearsal_lacks(paced):
    small = Study(write(paced)).run(PSAT)
    small.folder.mkdir(parents=True)
    for name, size in {"checkpoint.pt": 300, folder.WEIGHTS: 100, "run.json": 5}.items():
        (small.folder / name).write_bytes(bytes(size))
    run = paced.run(PSAT)
    many = run.model_copy(update={"training": run.training.model_copy(update={"snapshots": 1})})
    assert costs(small).disk(many) == 405 + 300 + 100 * len(many.training.snapshot_epochs)
    (small.folder / "checkpoint.previous.pt").write_bytes(bytes(300))
    assert costs(small).disk(run) == 705


def test_a_resources_file_holds_resources_alone(paced):
    paced.resources_file.parent.mkdir()
    for said, why in (
        ({"set": {"training": {"lr": 1}}}, "only resources may be set here, not training"),
        ({"where": {"model": "cnnn"}, "set": {"resources": {}}}, "touches no run of this study: unknown model 'cnnn'"),
    ):
        paced.resources_file.write_text(yaml.safe_dump({"overrides": [said]}))
        with pytest.raises(ConfigError, match=why):
            Study(paced.path).runs  # noqa: B018


def test_time_is_asked_for_the_longest_job_and_what_the_profile_does_not_allow_is_said(write_study):
    content = copy.deepcopy(TINY)
    content["tables"]["digits"] |= {"seeds": [0, 1, 2], "curvature": ["madry"], "landscapes": ["madry"]}
    study = Study(write_study(content))
    runs = [run for run in study.runs if run.defense == "madry"]
    cell = cell_of(study, runs, costs(runs[0], curvature={"product": 0.1, "loss": 10.0}))
    planes = predict.curvature(runs[0], cell.costs, ["landscape"]).high
    assert planes > 2 * cell.curvature.high  # which is that of the mean run, and the first alone has planes
    asked = needs.needed_by([cell])["evaluate_minutes"]
    assert 60 * asked >= needs.MARGIN * planes
    said = [misfit.said for misfit in needs.misfits([cell], {"max_minutes": asked - 1, "max_mem_mb": 500})]
    assert any(f"evaluate_minutes {asked}, but the profile allows {asked - 1} (max_minutes)" in one for one in said)
    assert any("but the profile allows 500 (max_mem_mb)" in one for one in said)


def test_a_plan_says_when_the_study_is_not_what_was_rehearsed(paced, capsys):
    write_json(Study(write(paced)).run(PSAT).folder / folder.MEASURED, MEASURED)
    assert main(["plan", "--study", str(paced.path)]) == 0 and "rehearsed, its" not in capsys.readouterr().out
    needs.write(paced, [needs.Misfit("digits", "cnn", "", {"mem_mb": 3000})])  # which changes no cost
    assert main(["plan", "--study", str(paced.path)]) == 0 and "rehearsed, its" not in capsys.readouterr().out
    content = yaml.safe_load(paced.path.read_text())
    content["overrides"].append({"set": {"attack": {"steps": 100}}})
    paced.path.write_text(yaml.safe_dump(content))
    assert main(["plan", "--study", str(paced.path)]) == 0
    assert "is not what was rehearsed, its settings have changed: rehearse it again;" in capsys.readouterr().out
    assert main(["plan", "--study", str(paced.path), "--write"]) == 2
    assert "rehearse it again, then --write" in capsys.readouterr().err


def test_a_long_training_is_said_to_take_several_jobs(paced):
    slow = {"training": {kind: {"whole": 100.0, "half": 100.0} for kind in ("first", "last")}}
    said = [misfit.said for misfit in needs.misfits(cells_of(paced, **slow), {"max_minutes": 30})]
    assert any("which is 3 jobs of the 30 that the profile allows; it goes on by itself" in one for one in said)


def test_what_a_gpu_does_not_hold_is_said(paced):
    memory = {"training": {"main": 900.0, "gpu": 6000.0}}
    large = ["judging", "curvature"]
    found = needs.misfits(cells_of(paced, memory_mb=memory, gpu_mb=16000.0, too_large=large), {})
    (shared,) = [misfit for misfit in found if "runs_per_gpu" in misfit.said]
    assert shared.resources == {"runs_per_gpu": 2} and "runs_per_gpu 4, but one takes 6600 MB" in shared.said
    batches = [misfit for misfit in found if "batch_size" in misfit.said]
    assert not any(misfit.resources for misfit in batches)
    for setting, misfit in zip(("evaluation", "curvature"), batches, strict=True):
        assert f"{setting}.batch_size takes more than the GPU's memory" in misfit.said


def test_memory_is_of_the_runs_own_number_of_images(tiny):
    run = tiny.run(MADRY)
    large = run.model_copy(update={"data": run.data.model_copy(update={"image": (3, 160, 160)})})
    assert predict.memory_needed(large, costs(run)) == pytest.approx(1000 + 1437 * 3 * 160 * 160 / 1e6)


def test_after_the_study_planned_stands_beside_taken(paced):
    run = paced.run(PSAT)
    write_run(run, range(10), [""] * 5 + ["apgd-ce"] * 5)  # epochs of 3 s and 5 s, 1.5 s an attack
    history = pd.read_csv(run.folder / folder.HISTORY).assign(validation_robust=1.0)
    history.to_csv(run.folder / folder.HISTORY, index=False)
    record = predict.taken(run, "train")
    write_json(run.folder / "run.json", record | {"seconds": 8.0})
    (row,) = comparison(cells_of(paced)).to_dict("records")
    assert row["run"] == "digits/cnn/psat/eps0.3"
    assert (row["training took"], row["AutoAttack took"]) == ("8.0 s", "6.0 s")
    assert row["training as it came"] == duration(1293 / 64 * (0.3 + 0.2) + 144 * 0.01 * 2)
    write_json(run.folder / "run.json", record | {"seconds": 8.0, "adopted_from": "results/other"})
    assert "training took" not in comparison(cells_of(paced)).columns


def test_the_plan_of_a_rehearsed_study_names_what_is_not_in_it(paced):
    rehearsal = Study(write(paced))
    small = rehearsal.run(PSAT)
    write_json(small.folder / folder.MEASURED, MEASURED)
    said = plan(paced, rehearsal, 1, {}, write=False)
    assert "digits/cnn/madry/eps0.3 is not in this: its rehearsal is not finished" in said
    assert said.splitlines()[1].split()[:2] == ["digits/cnn/psat/eps0.3", "1"]
    assert "Measured on a machine" in said and "All 1 runs" in said
    write_json(small.folder / folder.MEASURED, MEASURED | {"format": 1})
    with pytest.raises(ConfigError, match=r"of another version of sat_core: delete .*-rehearsal and rehearse again"):
        plan(paced, rehearsal, 1, {}, write=False)


def test_time_of_a_block_lies_on_the_lines_between_those_measured(paced):
    run = paced.run(PSAT)  # 12 images
    some = costs(run, judging={"square": [[1, 2.0], [4, 8.0], [12, 16.0]]})

    def seconds(standing: float) -> float:
        return predict.judging_as_it_came(run, some, {"n": 12, "clean": standing, "after": {"square": standing}})

    assert [seconds(n / 12) for n in (0, 0.5, 1, 2, 4, 8, 12)] == pytest.approx([0, 1, 2, 4, 8, 12, 16])


def test_what_several_runs_have_measured_is_taken_in_the_median(paced):
    def measured(seconds: float, n: int = 1, **changes) -> Costs:
        return costs(paced.run(PSAT), judging={"square": [[n, seconds]]}, **changes)

    found = {"a": measured(2.0), "b": measured(3.0), "c": measured(40.0), "missing": None}
    found["larger"] = measured(9.0, n=2, sizes=[13, 13, 100, 100])
    medians = predict.in_common(found)
    found = [medians[name].measured["judging"]["square"] for name in ("a", "c", "larger")]
    assert found == [[[1, 3]], [[1, 3]], [[2, 9]]]
    assert medians["missing"] is None


def test_of_attacks_that_were_timed_on_other_blocks_the_commonest_count(paced):
    def measured(*blocks) -> Costs:
        return costs(paced.run(PSAT), judging={"square": [list(block) for block in blocks]})

    found = {"a": measured((1, 2.0), (4, 9.0)), "b": measured((1, 4.0)), "c": measured((1, 6.0))}
    assert predict.in_common(found)["a"].measured["judging"]["square"] == [[1, 5.0]]
    found["c"] = measured((1, 4.0), (4, 11.0))  # of three, b alone was too slow for larger ones
    assert predict.in_common(found)["b"].measured["judging"]["square"] == [[1, 3.0], [4, 10.0]]


def test_a_piece_that_is_left_to_others_is_theirs(paced):
    left = {key: value for key, value in MEASURED.items() if key != "judging"} | {"left": ["judging"]}
    left["memory_mb"] = {piece: {"main": 900.0} for piece in left["memory_mb"] if piece != "judging"}
    one, other = paced.run(PSAT), paced.run(MADRY)
    found = predict.in_common({"one": costs(one), "left": Costs(other, left)})
    assert found["left"].measured["judging"] == MEASURED["judging"] and found["left"].memory == {"main": 1000.0}
    assert predict.in_common({"left": Costs(other, left), "elsewhere": costs(one, device="another")})["left"] is None
    rehearsal = Study(write(paced))
    for address, measured in {PSAT: MEASURED | {"device": "another"}, MADRY: left}.items():
        write_json(rehearsal.run(address).folder / folder.MEASURED, measured)
    said = plan(paced, rehearsal, 1, {}, write=False)
    assert (
        "madry/eps0.3 is not in this: what it left to other runs is gone: delete results/tiny-rehearsal/runs/" in said
    )


def test_a_piece_is_left_once_enough_others_have_measured_it_for_long_enough(tmp_path, paced):
    def others(seconds: float, count: int) -> list[Run]:
        runs = [paced.run(MADRY).model_copy(update={"place": str(tmp_path / f"{seconds}-{i}")}) for i in range(count)]
        for run in runs:
            run.folder.mkdir(parents=True)
            write_json(run.folder / folder.MEASURED, MEASURED | {"seconds": dict.fromkeys(predict.WORK, seconds)})
        return runs

    def left(*runs: Run, **changes) -> list[str]:
        return predict.left_to_others(paced.run(PSAT), [paced.run(PSAT), *runs], MEASURED | changes)

    assert left(*others(10.0, 3)) == ["validation", "judging", "curvature"]  # training is of another defense
    assert left(*others(15.1, 2)) == left(*others(9.9, 3)) == left() == []
    assert left(*others(11.0, 3), sizes=[13, 12, 100, 100]) == ["validation", "curvature"]
    assert left(*others(12.0, 3), device="another") == []


def test_what_several_epsilons_have_measured_of_a_defense_is_taken_in_the_median(paced):
    def measured(run, seconds: float, **changes) -> Costs:
        steps = {"first": {"whole": seconds, "half": seconds / 2}, "last": {"whole": seconds, "half": seconds}}
        return costs(run.model_copy(update=changes), training=steps)

    run, other = paced.run(PSAT), paced.run(MADRY)
    larger = run.training.model_copy(update={"batch_size": 2 * run.training.batch_size})
    found = {"a": measured(run, 1.0), "b": measured(run, 2.0), "c": measured(run, 9.0, epsilon=other.epsilon)}
    found |= {"another defense": measured(other, 5.0), "a larger batch": measured(run, 7.0, training=larger)}
    medians = {name: costs.measured["training"] for name, costs in predict.in_common(found).items()}
    assert all(medians[name]["first"] == {"whole": 2.0, "half": 1.0} for name in "abc")
    assert medians["another defense"]["last"]["whole"] == 5.0 and medians["a larger batch"]["last"]["whole"] == 7.0
