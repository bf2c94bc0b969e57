"""Figures of what there is, also of a damaged result and of nothing."""

import copy
import random

import pytest
from helpers import MADRY, TINY, write_run

from sat_core.errors import ConfigError
from sat_core.report import figures
from sat_core.report.figures import style
from sat_core.report.figures.style import existing
from sat_core.report.figures.training import tradeoff
from sat_core.report.kinds import FIGURES
from sat_core.runs.files import read_json, write_json
from sat_core.study import Study, defense_names


def test_figures_come_of_what_there_is(measured):
    for kind in FIGURES:
        if kind not in ("curves", "tradeoff", "examples"):
            assert figures.write_figure(measured, "digits", kind).stat().st_size > 10_000


@pytest.mark.parametrize("name, kind", [("landscape.npz", "landscape"), ("curvature.json", "curvature")])
def test_a_figure_is_not_drawn_of_a_damaged_result(measured, name, kind):
    path = measured.run(MADRY).folder / name
    whole = path.read_bytes()
    for length in [*random.Random(0).sample(range(len(whole) - 2), 19), len(whole) - 2]:  # the last is a newline
        path.write_bytes(whole[:length])
        with pytest.raises(ConfigError, match="damaged") as told:
            figures.write_figure(measured, "digits", kind)
        assert str(path) in str(told.value)


def test_what_was_measured_on_other_weights_is_not_drawn(measured):
    run = measured.run(MADRY)
    results = (("curvature", ""), ("landscape", ""), ("landscape", "landscape.npz"))
    assert all(list(existing(measured, [run.id], *result)) == [run.id] for result in results)
    record = read_json(run.folder / "run.json")
    record["files"]["model.safetensors"] = "those of another training"
    write_json(run.folder / "run.json", record)
    assert not any(existing(measured, [run.id], *result) for result in results)


def test_figures_of_nothing_are_drawn_all_the_same(write_study):
    content = copy.deepcopy(TINY)
    content["tables"]["digits"] |= {"curvature": ["madry", "psat"], "landscapes": ["madry", "psat"]}
    study = Study(write_study(content))
    assert set(FIGURES) == set(figures.KINDS)
    for kind in FIGURES:
        assert figures.write_figure(study, "digits", kind).exists()


def test_models_are_never_drawn_over_one_another(write_study):
    content = copy.deepcopy(TINY)
    content["tables"]["digits"] |= {"models": ["cnn", "small"], "defenses": ["madry"]}
    del content["overrides"][1]
    study = Study(write_study(content))
    for model, robust in (("cnn", ""), ("small", "square")):
        write_run(study.run(f"digits/{model}/madry/eps0.3/seed0"), range(10), [robust] * 10)
    axes = tradeoff(study, "digits").axes
    assert [axis.get_title().split("\n")[-1] for axis in axes] == ["cnn", "small"]
    points = [[tuple(point) for found in axis.collections for point in found.get_offsets()] for axis in axes]
    assert points == [[(100, 100)], [(100, 0)]]
    figures.plt.close("all")


def test_a_defense_looks_the_same_in_every_study_and_sixteen_can_be_told_apart(write_study, tiny_study):
    names = sorted(defense_names())
    tiny_study["tables"]["digits"]["defenses"] = names  # their options are not asked for
    everything = Study(write_study(tiny_study))
    looks = style.appearance(everything, everything.file.tables["digits"])
    assert len(names) >= 16 and len(set(looks.values())) == len(names)

    tiny_study["tables"]["digits"]["defenses"] = ["psat", "eager", "madry"]
    tiny_study["variants"] = {"eager": {"defense": "psat"}}
    tiny_study["names"] = {"psat": "P-SAT (ours)"}
    few = Study(write_study(tiny_study))
    some = style.appearance(few, few.file.tables["digits"])
    assert some["psat"] == looks["psat"] and some["madry"] == looks["madry"]
    assert some["eager"][0] == looks["psat"][0] and some["eager"][1] != looks["psat"][1]
    assert few.display("psat") == "P-SAT (ours)" and few.display("madry") == "madry"


def test_a_name_for_a_defense_that_stands_in_no_table_is_a_mistake(write_study, tiny_study):
    with pytest.raises(ConfigError, match="names: unknown defense 'pzat'; did you mean 'psat'"):
        Study(write_study(tiny_study | {"names": {"pzat": "P-SAT"}}))
