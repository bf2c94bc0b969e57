"""A rehearsal of the paper's study, through Snakemake, on noise in the public datasets' own formats.

Every dataset, network and defense of it, though not each with each: that is a slow test of tests/slurm.
"""

import yaml
from formats import UNCHECKED, write_cifar, write_imagenette, write_mnist
from helpers import REPOSITORY, Project

from sat_core.report.kinds import FIGURES
from sat_core.study import Study
from sat_core.study.file import COMPARISONS, PARTS

MEASURED = ("curvature", "landscape")
PAPER = yaml.safe_load((REPOSITORY / "config/paper.yaml").read_text())
SMALL = [
    {
        "set": {
            "training": {"batch_size": 2, "lr": 0.001},
            "attack": {"steps": 2},
            "validation": {"fraction": 0.5},
            "evaluation": {"batch_size": 2, "images": 1},
            "curvature": {"images": 2, "batch_size": 2},
            "resources": {"threads": 1, "mem_mb": 7000},
        }
    },
    {"where": {"dataset": "cifar100"}, "set": {"training": {"batch_size": 20}}},
    {"where": {"model": "wrn-34-10"}, "set": {"evaluation": {"batch_size": 1}}},
]
"""What a processor can do: AutoAttack on a Wide ResNet takes it half an hour an image, if that stands.

At the real learning rates TRADES on VGG-16-BN diverges on two images of noise at a time. CIFAR-100 has each class on
both sides, which makes 75 steps of two images an epoch, or eight of twenty. AutoAttack is
measured on one image and on a block.
"""


def table(dataset, models, defenses, epsilon, measured=()):
    rows = {"dataset": dataset, "models": models, "defenses": defenses, "epsilons": [epsilon], "seeds": [0, 1, 2]}
    return rows | {"curvature": list(measured), "landscapes": list(measured)}


PART = {
    "mnist": table("mnist", ["cnn"], ["madry", "hsat"], 0.3, ["hsat"]),
    "imagenette": table("imagenette", ["resnet34"], ["psat"], "16/255"),
    "cifar10": table("cifar10", ["preactresnet18"], ["trades", "hsat"], "8/255"),
    "cifar10-wide": table("cifar10", ["wrn-34-10"], ["standard"], "8/255"),
    "cifar10-plain": table("cifar10", ["densenet121"], ["dynamic"], "8/255"),
    "cifar100": table("cifar100", ["vgg16bn"], ["cat"], "8/255"),
}


def rehearse(folder, study, seconds, *arguments, environment=None):
    """A project that has rehearsed a study on noise within so many seconds."""
    project = Project(folder, study | {"overrides": SMALL})
    write_mnist(project.folder / "data", train=60, test=20)
    write_cifar(project.folder / "data", False, train=100, test=10)
    write_cifar(project.folder / "data", True, train=400, test=20)
    write_imagenette(project.folder / "data", 4)
    (project.folder / "sitecustomize.py").write_text(UNCHECKED)
    arguments += ("--quiet", "rules", "--config", "rehearse=true")
    project.snakemake(*arguments, environment=environment, within=seconds)
    return project


def check(project, tables):
    """Every table, figure and run is there, and the plan knows each cell of the study."""
    results = project.folder / "results/study-rehearsal"
    assert (results / "report.html").stat().st_size > 10_000
    for name, asked in tables.items():
        for part in (*PARTS, COMPARISONS) if len(asked["defenses"]) > 1 else PARTS:
            assert "A rehearsal, AutoAttack cut short: no result." in (results / f"tables/{name}{part}.md").read_text()
        drawn = {kind for kind, figure in FIGURES.items() if not figure.on_request}
        drawn -= set() if asked.get("curvature") else {kind for kind in drawn if FIGURES[kind].stage in MEASURED}
        assert not [kind for kind in drawn if not (results / f"figures/{name}-{kind}.png").exists()]
    cells = {id.path.rpartition("/")[0] for id in Study(project.study("study")).run_ids.values()}
    made = {str(path.parents[1].relative_to(results / "runs")) for path in results.glob("runs/**/autoattack.json")}
    assert made - {"."} >= cells
    said = project.python("-m", "sat_core", "plan", "--study", "config/study.yaml")
    assert {line.split()[0] for line in said.splitlines() if "/eps" in line} >= cells
    assert "Measured on CPU, 1 threads" in said and "is not in this" not in said


def test_the_papers_networks_defenses_and_datasets_rehearse(tmp_path):
    for key in ("models", "defenses"):
        assert {name for t in PART.values() for name in t[key]} == {n for t in PAPER["tables"].values() for n in t[key]}
    assert {t["dataset"] for t in PART.values()} == {t["dataset"] for t in PAPER["tables"].values()}
    check(rehearse(tmp_path / "project", {"tables": PART}, 1200, "--cores", "2"), PART)
