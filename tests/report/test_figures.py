"""Figures of what there is, also of a damaged result and of nothing."""

import copy
import random
import shutil
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import MADRY, TINY, write_run
from matplotlib.text import Text
from PIL import Image

from sat_core.__main__ import main
from sat_core.errors import ConfigError
from sat_core.report import figures
from sat_core.report.figures import style
from sat_core.report.figures.accuracy import tradeoff
from sat_core.report.figures.curvature import curvature_accuracy
from sat_core.report.figures.style import existing
from sat_core.report.kinds import FIGURES
from sat_core.runs.files import read_json, write_json
from sat_core.study import Study, defense_names


@pytest.mark.parametrize("name, kind", [("landscape.npz", "landscape"), ("curvature.json", "curvature")])
def test_a_figure_is_not_drawn_of_a_damaged_result(measured, name, kind):
    path = measured.run(MADRY).folder / name
    whole = path.read_bytes()
    for length in [*random.Random(0).sample(range(len(whole) - 2), 19), len(whole) - 2]:  # the last is a newline
        for place in (path, path.parent / ".kept" / name):
            place.write_bytes(whole[:length])
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


def test_a_figure_says_which_of_its_runs_are_of_other_settings(measured):
    figures.write_figure(measured, "digits", "curvature")
    path = measured.folder / "figures/digits-curvature.csv"
    assert "stale" not in pd.read_csv(path)
    content = yaml.safe_load(measured.path.read_text())
    content["overrides"].append({"set": {"curvature": {"seed": 7}}})
    measured.path.write_text(yaml.safe_dump(content))
    study = Study(measured.path)
    with plt.rc_context(style.rc(study)):
        drawing = figures.KINDS["curvature"](study, "digits")
        data = figures.marked(study, "digits", "curvature", *drawing)
    assert drawing.figure.get_supxlabel() == "‡ 1 of 2 runs: of other settings or code than the present"
    assert set(data["stale"]) == {"curvature.seed 0 -> 7"}
    plt.close("all")


def test_figures_of_nothing_are_drawn_all_the_same(write_study):
    content = copy.deepcopy(TINY)
    content["tables"]["digits"] |= {"curvature": ["madry", "psat"], "landscapes": ["madry", "psat"]}
    study = Study(write_study(content))
    assert set(FIGURES) == set(figures.KINDS)
    for kind in FIGURES:
        assert figures.write_figure(study, "digits", kind).exists()


def test_a_figure_that_a_table_does_not_ask_for_is_a_sentence(write_study, capsys):
    path = str(write_study())
    for kind, key in (("landscape-pair", "landscapes"), ("spectrum", "curvature")):
        assert main(["figure", "--study", path, "--table", "digits", "--kind", kind]) == 2
        assert f"table digits has no '{key}': nothing to draw" in capsys.readouterr().err


def test_an_epsilon_of_which_there_is_nothing_yet_has_no_panels(measured):
    content = yaml.safe_load(measured.path.read_text())
    content["tables"]["digits"]["epsilons"] = [0.2, 0.3, 0.45]
    measured.path.write_text(yaml.safe_dump(content))
    for kind in ("curves", "curvature-accuracy", "spectrum", "landscape", "landscape-pair"):
        drawn = figures.KINDS[kind](Study(measured.path), "digits").figure
        said = " ".join(text.get_text() for text in drawn.findobj(Text))
        assert "= 0.3" in said and "= 0.2" not in said and "= 0.45" not in said, kind
    figures.plt.close("all")


def test_models_are_never_drawn_over_one_another(write_study):
    content = copy.deepcopy(TINY)
    content["tables"]["digits"] |= {"models": ["cnn", "small"], "defenses": ["madry"]}
    del content["overrides"][1]
    study = Study(write_study(content))
    for model, robust in (("cnn", ""), ("small", "square")):
        write_run(study.run(f"digits/{model}/madry/eps0.3/seed0"), range(10), [robust] * 10)
    axes = tradeoff(study, "digits").figure.axes
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
    assert few.display("psat") == "P-SAT (ours)" and few.display("madry") == "Madry et al. [2018]"


def test_a_name_for_a_defense_that_stands_in_no_table_is_a_mistake(write_study, tiny_study):
    with pytest.raises(ConfigError, match="names: unknown defense 'pzat'; did you mean 'psat'"):
        Study(write_study(tiny_study | {"names": {"pzat": "P-SAT"}}))


def numbers_of(study: Study, kind: str) -> pd.DataFrame:
    return pd.read_csv(figures.write_figure(study, "digits", kind).with_suffix(".csv"))


def test_the_numbers_of_every_figure_stand_beside_it(measured):
    curvature = numbers_of(measured, "curvature")
    record = read_json(measured.run(MADRY).folder / "curvature.json")
    assert curvature["lambda_max"].tolist() == pytest.approx([record["selected"]["lambda_max"]], rel=1e-5)
    plane = numbers_of(measured, "landscape")
    assert len(plane) == 25 and plane.loc[12, ["u", "v"]].tolist() == [0, 0]
    with np.load(measured.run(MADRY).folder / "landscape.npz") as file:
        (left, right), loss = file["random_axis"][:2], file["random_loss"][0, 1]
    (found,) = plane.loc[np.isclose(plane["u"], left) & np.isclose(plane["v"], right), "loss"]
    assert found == pytest.approx(loss, rel=1e-5)
    assert numbers_of(measured, "landscape-pair").equals(plane)
    assert len(numbers_of(measured, "curves")) == 2
    assert set(numbers_of(measured, "spectrum")) >= {"eigenvalue", "density", "defense", "epsilon", "seed"}


@pytest.mark.parametrize("width", [3.25, 6.75])
def test_figures_are_as_wide_as_the_study_says_and_have_no_type_3_font(measured, width):
    study = Study(measured.path)
    study.file = study.file.model_copy(update={"figure_width": width})
    for kind in FIGURES:
        path = figures.write_figure(study, "digits", kind)
        if kind != "landscape-pair":
            assert Image.open(path).width == pytest.approx(200 * width, abs=1)
        if shutil.which("pdffonts"):
            fonts = subprocess.run(["pdffonts", path.with_suffix(".pdf")], capture_output=True, text=True, check=True)
            assert "TrueType" in fonts.stdout and "Type 3" not in fonts.stdout


def test_what_is_published_is_hollow_beside_every_seed_of_ours(write_study):
    table = {"dataset": "mnist", "models": ["cnn"], "defenses": ["cat", "psat"], "epsilons": [0.3], "seeds": [0, 1]}
    study = Study(write_study({"tables": {"mnist": table}}))
    for seed in (0, 1):
        write_run(
            study.run(f"mnist/cnn/psat/eps0.3/seed{seed}"), range(10), ["square"] * (seed + 1) + [""] * (9 - seed)
        )
    figure, data = tradeoff(study, "mnist")
    ours, published = data[data["origin"] == "run"], data[data["origin"] == "paper"].set_index("defense")
    assert ours[["clean", "robust"]].to_numpy().tolist() == [[100, 90], [100, 80]]
    assert published[["clean", "robust"]].to_dict("index") == {
        "cat": {"clean": 99.46, "robust": 0.0},
        "psat": {"clean": 99.16, "robust": 92.0},
    }
    near, everything = figure.axes  # CAT's robust accuracy of 0 is far below the others
    hollow = [
        found for found in everything.collections if len(found.get_facecolors()) == 0 and len(found.get_offsets())
    ]
    assert sorted(tuple(found.get_offsets()[0]) for found in hollow) == [(99.16, 92.0), (99.46, 0.0)]
    (low, high), (left, right) = near.get_ylim(), near.get_xlim()
    assert 70 < low < 80 and 92 < high < 100 and left > 98 and right < 101
    figures.plt.close("all")


def test_a_trivial_network_is_marked_in_the_spectrum_and_part_of_no_mean(measured):
    path = measured.run(MADRY).folder / "curvature.json"
    record = read_json(path)
    for trivial in (False, True):
        write_json(path, record | {"selected": record["selected"] | {"trivial": trivial}})
        (axis,) = figures.KINDS["spectrum"](measured, "digits").figure.axes
        assert ("trivial" in axis.get_legend_handles_labels()[1]) == trivial
        top = figures.KINDS["curvature"](measured, "digits").figure.axes[0]
        assert [len(line.get_xdata()) for line in top.lines] == [0 if trivial else 1]
    figures.plt.close("all")


def test_measures_of_flatness_are_shown_where_a_result_has_them(measured):
    path = measured.run(MADRY).folder / "curvature.json"
    record = read_json(path)
    figure, data = curvature_accuracy(measured, "digits")
    assert [axis.get_ylabel() for axis in figure.axes][1:] == ["trace of the Hessian", "relative flatness"]
    for name in ("trace", "trace_error", "relative_flatness"):
        assert data.loc[0, name] == record["selected"].pop(name)
    write_json(path, record)
    assert len(curvature_accuracy(measured, "digits").figure.axes) == 1
    figures.plt.close("all")
