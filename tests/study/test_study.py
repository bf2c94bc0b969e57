"""Study files: what they mean, and one sentence for each way of getting them wrong."""

import copy
import json
import zlib

import jsonschema
import pytest
import yaml
from helpers import REPOSITORY, TINY, script

from sat_core.__main__ import main
from sat_core.errors import ConfigError
from sat_core.fields import at
from sat_core.runs import rehearsal
from sat_core.runs.check import check
from sat_core.study import PROJECT_CONFIG, RunId, Study
from sat_core.study.address import Epsilon
from sat_core.study.file import DatasetFile, StudyFile
from sat_core.study.fingerprint import changes, code, made_of


def changed(path: str, value: object) -> dict:
    """TINY with the value at a dotted path replaced (list indices are numbers)."""
    study = copy.deepcopy(TINY)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node = study
    for part in parents:
        node = node[part]
    node[last] = value
    return study


def test_epsilon_is_kept_as_typed_and_survives_the_path():
    assert Epsilon.parse(0.00001).text == "0.00001"
    for text, value, slug in (("0.3", 0.3, "0.3"), ("8/255", 8 / 255, "8-255"), ("1", 1.0, "1")):
        epsilon = Epsilon.parse(text)
        assert (epsilon.text, epsilon.value, epsilon.slug) == (text, value, slug)
        id = RunId("cifar10", "cnn", "madry", epsilon, 3)
        assert RunId.parse(id.path) == id


def test_overrides_apply_in_order_and_only_where_they_say(tiny):
    madry, psat = tiny.run("digits/cnn/madry/eps0.3/seed0"), tiny.run("digits/cnn/psat/eps0.3/seed0")
    assert madry.training.epochs == psat.training.epochs == 2
    assert madry.training.lr == 0.05  # from config/datasets/digits.yaml
    assert madry.options == {}
    assert psat.options["curriculum"] == {"kind": "steps", "epochs": [1], "start": 0.01}


def test_a_variant_is_a_row_with_the_options_of_what_it_varies(write_study):
    study = changed("tables.digits.defenses", ["trades", "trades-mean"])
    study["variants"] = {"trades-mean": {"defense": "trades", "options": {"reduction": "mean"}}}
    del study["overrides"][1]  # P-SAT's
    run = Study(write_study(study)).run("digits/cnn/trades-mean/eps0.3/seed0")
    assert (run.defense, run.base, run.options) == ("trades-mean", "trades", {"beta": 1, "reduction": "mean"})
    study["variants"]["trades-mean"]["options"]["beta"] = 3
    study["overrides"].append({"where": {"defense": "trades-mean"}, "set": {"options": {"beta": 9}}})
    study["overrides"].append({"where": {"defense": "trades"}, "set": {"options": {"beta": 5}}})
    betas = [run.options["beta"] for run in Study(write_study(study)).runs]
    assert betas == [5, 9]  # what is said of the variant by name is the last word on it


def test_what_a_study_that_extends_another_says_comes_last(write_study, tiny_study):
    lr = [{"set": {"training": {"lr": value}}} for value in (0.05, 0.2)]
    tiny_study["variants"] = {
        "late": {"defense": "psat", "options": {"curriculum": {"kind": "steps", "epochs": [0, 1]}}}
    }
    tiny_study["tables"]["digits"]["defenses"] = ["madry", "late"]
    del tiny_study["overrides"][1]
    write_study(tiny_study | {"overrides": [*tiny_study["overrides"], *lr]}, "below")
    above = {"extends": "below.yaml", "overrides": lr[:1], "tables": {"digits": {"defenses": ["trades", "late"]}}}
    above["variants"] = {"late": {"defense": "psat", "options": {"curriculum": {"epochs": [1]}}}}
    study = Study(write_study(above, "above"))
    assert study.file.tables["digits"].defenses == ["madry", "late", "trades"]
    run = study.run("digits/cnn/late/eps0.3/seed0")
    assert run.training.lr == 0.05 and run.options["curriculum"]["epochs"] == [1]


def test_datasets_are_found_beside_the_study_that_is_extended_too(write_study, tmp_path, tiny_study):
    digits = (PROJECT_CONFIG / "datasets/digits.yaml").read_text()
    for place, lr in ((".", None), ("base", 0.3), ("base/of", 0.4)):
        (tmp_path / place / "datasets").mkdir(parents=True)
        if lr:
            (tmp_path / place / "datasets/mine.yaml").write_text(digits.replace("lr: 0.05", f"lr: {lr}"))
    tiny_study["tables"]["digits"]["dataset"] = "mine"
    (tmp_path / "base/of/tiny.yaml").write_text(yaml.safe_dump(tiny_study))
    (tmp_path / "base/middle.yaml").write_text("extends: of/tiny.yaml\n")
    study = Study(write_study("extends: base/middle.yaml\n", "top"))
    assert {run.training.lr for run in study.runs} == {0.3}
    assert {run.training.lr for run in Study(rehearsal.write(study)).runs} == {0.3}
    (tmp_path / "datasets/mine.yaml").write_text(digits)
    assert {run.training.lr for run in Study("top.yaml").runs} == {0.05}


def test_a_training_is_not_made_of_the_place_of_the_data_nor_of_what_follows_it(write_study):
    study = changed("overrides.0.set.evaluation.images", 24)
    study["overrides"].append({"set": {"curvature": {"images": 7}, "landscape": {"points": 5}}})
    study["overrides"].append({"set": {"data": {"root": "/elsewhere"}}})
    address = "digits/cnn/madry/eps0.3/seed0"
    original, moved = Study(write_study()).run(address), Study(write_study(study, "other")).run(address)
    recorded = made_of(original, "train")
    assert recorded == made_of(moved, "train") and not changes(recorded, moved, "train")
    assert changes(made_of(original, "evaluate"), moved, "evaluate") == ["evaluation.images 12 -> 24"]
    study["overrides"].append({"set": {"training": {"lr": 0.1}}})
    faster = Study(write_study(study, "third")).run(address)
    assert changes(recorded, faster, "train") == ["training.lr 0.05 -> 0.1"]


def test_a_training_is_made_of_its_radius_and_seed(write_study, tiny_study):
    tiny_study["tables"]["digits"] |= {"epsilons": [0.3, 0.2], "seeds": [0, 1]}
    runs = {run.id.path: run for run in Study(write_study(tiny_study)).runs}
    recorded = made_of(runs["digits/cnn/madry/eps0.3/seed0"], "train")
    assert changes(recorded, runs["digits/cnn/madry/eps0.2/seed0"], "train") == ["epsilon 0.3 -> 0.2"]
    assert changes(recorded, runs["digits/cnn/madry/eps0.3/seed1"], "train") == ["seed 0 -> 1"]


def test_what_is_made_with_the_packages_public_names_depends_on_where_they_are_from(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("from sat_core import lambda_max\n")
    assert {"hessian", "hessian.lanczos"} <= set(code(str(mine)))
    mine.with_name("other.py").write_text("from sat_core import PGD\n")
    assert set(code(str(mine.with_name("other.py")))) >= {"attacks"}
    assert "hessian" not in code(str(mine.with_name("other.py")))


def test_the_epoch_that_a_share_means_stays_what_it_is():
    """No result would become stale if that changed: of ``fields`` no code counts, and of settings the share itself."""
    epochs = [at(share / 20, epochs) for epochs in range(1, 121) for share in range(1, 21)]
    assert zlib.crc32(bytes(epochs)) == 3833678051


VARIANT = {"defense": "trades", "options": {}}
BAD = {
    "unknown dataset": (changed("tables.digits.dataset", "digitz"), "unknown dataset 'digitz'; did you mean 'digits'?"),
    "unknown defense": (changed("tables.digits.defenses", ["madri"]), "unknown defense 'madri'; did you mean 'madry'?"),
    "unknown model": (changed("tables.digits.models", ["cnm"]), "unknown model 'cnm'; did you mean 'cnn'?"),
    "unknown key": (changed("tables.digits.defences", ["madry"]), "unknown key 'defences'; did you mean 'defenses'?"),
    "unknown option": (
        changed("overrides.0", {"set": {"options": {"betta": 1}}}),
        "options of defense 'madry': unknown key 'betta'",
    ),
    "missing option": (
        changed("overrides", [{"where": {"defense": "psat"}, "set": {"options": {"curriculum": {"kind": "steps"}}}}])
        | {"tables": changed("tables.digits.epsilons", ["8/0"])["tables"]},
        "epsilon '8/0' is not a number or fraction in (0, 1]",
    ),
    "epsilon -1": (changed("tables.digits.epsilons", [-1]), "epsilon '-1' is not a number or fraction in (0, 1]"),
    "epsilon 2": (changed("tables.digits.epsilons", [2]), "epsilon '2' is not"),
    "epsilon true": (changed("tables.digits.epsilons", [True]), "epsilon 'True' is not"),
    "one radius": (changed("tables.digits.epsilons", [0.3, "3/10"]), "epsilons 0.3 and 3/10 are the same radius"),
    "twice": (changed("tables.digits.seeds", [0, 0]), "listed twice: 0"),
    "negative seed": (changed("tables.digits.seeds", [-1]), "tables.digits.seeds.0: "),
    "escape": (changed("tables.digits.models", ["../cnn"]), "tables.digits.models.0: "),
    "epochs text": (changed("overrides.0.set.training.epochs", "ten"), "training.epochs: "),
    "key in braces": (changed("tables.digits.epsilons", [{"8/255": None}]), "tables.digits.epsilons.0"),
    "average late": (
        changed("overrides.0.set.training", {"epochs": 2, "average": "swa", "average_from": 2}),
        "average_from 2 is after the last epoch (1)",
    ),
    "awp late": (
        changed("overrides.0.set.training", {"epochs": 2, "awp": {"warm_up": 7}}),
        "awp.warm_up 7 is after the last epoch (1)",
    ),
    "a sample of nearly all": (
        changed("overrides.0.set.data", {"train_images": 1430}),
        "data.train_images asks for 1430 of 1437: a sample is of 1427 at most, or of all",
    ),
    "no such day": ("description: 2024-02-30", "not valid YAML: day is out of range"),
    "samples that depend on one another": (
        TINY
        | {
            "tables": changed("tables.digits.defenses", ["hsat"])["tables"],
            "overrides": [{"set": {"attack": {"batchnorm": "train"}, "options": {"metric": "gauss_newton"}}}],
        },
        "options.metric gauss_newton is of samples alone: attack.batchnorm: train makes",
    ),
    "milestone late": (changed("overrides.0.set.training.milestones", [2]), "must increase and lie below epochs (2)"),
    "curriculum late": (
        changed("overrides.1.set.options.curriculum.epochs", [0, 2]),
        "curriculum.epochs [0, 2] reach beyond the last epoch (1)",
    ),
    "lr beyond floats": (changed("overrides.0.set.training.lr", "1e400"), "training.lr: "),
    "lr that takes for ever": (changed("overrides.0.set.training.lr", "1e999999999"), "training.lr: "),
    "a fraction beyond floats": (changed("overrides.0.set.training.lr", f"{10**400}/1"), "training.lr: '1000"),
    "seed beyond torch's": (changed("overrides.0.set.evaluation", {"seed": 2**64}), "evaluation.seed: "),
    "threads without number": (changed("overrides.0.set.resources", {"threads": 10**5}), "resources.threads: "),
    "no memory for it": (changed("overrides.0.set.training.batch_size", 10**20), "training.batch_size: "),
    "lr nan": (changed("overrides.0.set.training.lr", float("nan")), "training.lr: "),
    "steps true": (changed("overrides.0.set.attack.steps", True), "attack.steps: "),
    "curvature of a stranger": (
        changed("tables.digits", TINY["tables"]["digits"] | {"curvature": ["trades"]}),
        "tables.digits: curvature: unknown defense 'trades' (allowed: madry, psat)",
    ),
    "landscape without a centre": (
        changed("overrides.0.set.landscape", {"points": 24}),
        "landscape.points: 24 points a side have no centre; an odd number is needed",
    ),
    "override of nothing": (
        changed("overrides.1.where.defense", ["psat", "traeds"]),
        "overrides.1.where touches no run of this study: unknown defense 'traeds' (allowed: madry, psat)",
    ),
    "override of another epsilon": (
        changed("overrides.1.where", {"defense": "psat", "epsilon": "0.30"}),
        "overrides.1.where touches no run of this study: unknown epsilon '0.30'; did you mean '0.3'? (allowed: 0.3)",
    ),
    "variant in no table": (TINY | {"variants": {"mean": VARIANT}}, "variants.mean stands in no table"),
    "variant in disguise": (TINY | {"variants": {"psat": VARIANT}}, "variants.psat: there is a defense of that name"),
    "one seed": (changed("tables.digits.seeds", 3), "tables.digits.seeds: a list is expected, such as [3]"),
    "seeds of nothing": (changed("tables.digits.seeds", None), "seeds: a list is expected, such as [0.3]"),
    "no seed": (changed("tables.digits.seeds", []), "tables.digits.seeds: at least 1 of them is needed"),
    "seed in words": (changed("tables.digits.seeds", ["zero"]), "seeds.0: a whole number is expected, not 'zero'"),
    "seed too large": (changed("tables.digits.seeds", [2**32]), "tables.digits.seeds.0: "),
    "image of two": (changed("overrides.0.set.data", {"image": [28, 28]}), "data.image.0: "),
    "three classes": (changed("overrides.0.set.data", {"classes": 3}), "data.classes: "),
    "table of capitals": (
        {"tables": {"Digits": TINY["tables"]["digits"]}},
        "tables.Digits: only a-z, 0-9, '-' and '_'",
    ),
    "model of capitals": (changed("tables.digits.models", ["PreActResNet18"]), "; did you mean 'preactresnet18'?"),
    "more images than there are": (
        changed("overrides.0.set.evaluation.images", 361),
        "evaluation.images asks for 361, but there are only 360",
    ),
    "a split that leaves a class out": (
        changed("overrides.0.set.validation", {"fraction": 0.0001}),
        "validation.fraction 0.0001 of 1437 training images is 1: it and the rest must be 10 at least",
    ),
    "a verdict cut short": (
        changed("overrides.0.set.evaluation.iterations", 10),
        "evaluation.iterations is for rehearsals: a verdict is of all of AutoAttack",
    ),
    "a template": ("tables: {{x}}", "not valid YAML"),
    "not a mapping": ([1, 2], "a mapping (key: value) is expected"),
    "no tables": ({"tables": {}}, "tables: "),
    "not yaml": ("tables: [", "not valid YAML"),
    "epochs zero": (changed("overrides.0.set.training.epochs", 0), "training.epochs: "),
    "epochs fraction": (changed("overrides.0.set.training.epochs", 1.5), "training.epochs: "),
    "epochs true": (changed("overrides.0.set.training.epochs", True), "training.epochs: "),
    "batch of none": (changed("overrides.0.set.training.batch_size", 0), "training.batch_size: "),
    "lr zero": (changed("overrides.0.set.training.lr", 0), "training.lr: "),
    "lr negative": (changed("overrides.0.set.training.lr", -0.1), "training.lr: "),
    "lr true": (changed("overrides.0.set.training.lr", True), "a number is expected, not true/false"),
    "lr a list": (changed("overrides.0.set.training.lr", [0.1]), "training.lr: "),
    "momentum one": (changed("overrides.0.set.training.momentum", 1), "training.momentum: "),
    "decay negative": (changed("overrides.0.set.training.weight_decay", -1), "training.weight_decay: "),
    "milestones falling": (changed("overrides.0.set.training.milestones", [1, 1]), "must increase"),
    "unknown augmentation": (changed("overrides.0.set.training.augmentation", ["twirl"]), "training.augmentation.0: "),
    "unknown selection": (changed("overrides.0.set.training.select", "worst"), "training.select: "),
    "steps zero": (changed("overrides.0.set.attack.steps", 0), "attack.steps: "),
    "step size zero": (changed("overrides.0.set.attack.relative_step_size", 0), "attack.relative_step_size: "),
    "step size 1/0": (changed("overrides.0.set.attack.relative_step_size", "1/0"), "is not a number or a fraction"),
    "batchnorm": (changed("overrides.0.set.attack.batchnorm", "test"), "attack.batchnorm: "),
    "fraction one": (changed("overrides.0.set.validation", {"fraction": 1}), "validation.fraction: "),
    "images zero": (changed("overrides.0.set.evaluation.images", 0), "evaluation.images: "),
    "shards zero": (changed("overrides.0.set.evaluation.shards", 0), "evaluation.shards: "),
    "seed text": (changed("overrides.0.set.evaluation.seed", "lucky"), "evaluation.seed: "),
    "threads zero": (changed("overrides.0.set.resources", {"threads": 0}), "resources.threads: "),
    "minutes negative": (changed("overrides.0.set.resources", {"checkpoint_minutes": -1}), "resources.checkpoint_"),
    "unknown source": (changed("overrides.0.set.data", {"source": "imagenet"}), "data.source: "),
    "std zero": (changed("overrides.0.set.data", {"std": [0]}), "data.std.0: "),
    "mean of three": (changed("overrides.0.set.data", {"mean": [0, 0, 0]}), "one number for each of the 1 channels"),
    "mean of bytes": (changed("overrides.0.set.data", {"mean": [120]}), "data.mean.0: "),
    "a folder's root misspelt": (
        changed("overrides.0.set.data", {"source": "folder", "rot": "x"}),
        "unknown key 'rot'; did you mean 'root'?",
    ),
    "unknown section": (changed("overrides.0.set.trainning", {}), "unknown key 'trainning'; did you mean 'training'?"),
    "unknown place": (changed("overrides.1.where", {"modell": "cnn"}), "unknown key 'modell'; did you mean 'model'?"),
    "lambda range": (
        changed("overrides.1.set.options.curriculum.stop", 1.5),
        "curriculum.stop 1.5 is outside the range of this difficulty, -1.0..1.0",
    ),
    "unknown curriculum": (changed("overrides.1.set.options.curriculum.kind", "cosine"), "curriculum.kind: "),
    "shell in a model": (changed("tables.digits.models", ["cnn; rm -rf ~"]), "tables.digits.models.0: "),
    "shell in a defense": (changed("tables.digits.defenses", ["$(id)"]), "tables.digits.defenses.0: "),
    "shell in a dataset": (changed("tables.digits.dataset", "`id`"), "tables.digits.dataset: "),
    "shell in a table": ({"tables": {"a b": TINY["tables"]["digits"]}}, "tables.a b"),
    "newline in a name": (changed("tables.digits.models", ["cnn\n"]), "tables.digits.models.0: "),
    "absolute path": (changed("tables.digits.dataset", "/etc/passwd"), "tables.digits.dataset: "),
    "python in yaml": ("tables: !!python/object/apply:os.system ['true']", "not valid YAML"),
    "key twice": ("tables: {}\ntables: {}\n", "'tables' is given twice"),
    "variant of nothing": (
        changed("variants", {"new": {"defense": "nothing"}})
        | changed("tables.digits.defenses", ["new"])
        | {"variants": {"new": {"defense": "nothing"}}},
        "unknown defense 'nothing'",
    ),
    "empty": ("", "a mapping (key: value) is expected"),
    "model too large": (
        changed("overrides.0.set.data", {"image": [1, 9, 9]}),
        "model 'cnn' does not fit images of 1x9x9 (C x H x W): it is made for 28x28 (the paper's) or 8x8 images",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_study_gets_one_sentence(write_study, name, capsys):
    content, sentence = BAD[name]
    path = write_study(content)
    assert main(["check", "--study", str(path)]) != 0
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (path.parent / "results").exists()


def test_a_run_outside_the_study_is_refused_with_the_nearest_one(tiny):
    with pytest.raises(ConfigError, match=r"has no run .*; the nearest it has is 'digits/"):
        tiny.run("digits/cnn/madry/eps0.4/seed0")
    with pytest.raises(ConfigError, match="not of the form"):
        tiny.run("digits/madry")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "config").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_that_ships_is_valid(path):
    study = Study(path)
    check(study, study.runs)
    schema = json.loads((REPOSITORY / "workflow/schemas/study.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


def test_the_editor_schemas_are_those_of_the_code():
    for name, model in (("study", StudyFile), ("dataset", DatasetFile)):
        committed = json.loads((REPOSITORY / f"workflow/schemas/{name}.schema.json").read_text())
        assert committed == model.model_json_schema(), "run `make schemas`"


def test_the_page_of_settings_is_that_of_the_code():
    settings = script("workflow/schemas/refresh.py").settings()
    assert (REPOSITORY / "docs/settings.md").read_text() == settings, "run `make schemas`"
