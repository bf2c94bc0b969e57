"""Published numbers of the methods beside SAT, and the table of all methods in the documentation."""

from fractions import Fraction

import pytest
from helpers import REPOSITORY

from sat_core import defenses
from sat_core.report import numbers
from sat_core.study import defense_names
from sat_core.study.address import Epsilon
from sat_core.study.reading import read_yaml

DOCUMENT = (REPOSITORY / "docs/methods.md").read_text(encoding="utf-8")


def test_what_others_published_is_read_and_the_papers_own_number_goes_first():
    eight, found = Fraction(8, 255), numbers.published()
    assert found["cifar10", "preactresnet18", "fat", eight, "robust"]["published"] == 43.1
    assert found["cifar10", "wrn-34-10", "psat", eight, "robust"]["label"] == "predecessor"
    assert found["mnist", "cnn", "madry", Fraction("0.3"), "robust"]["label"] == "paper"


def test_published_numbers_are_of_things_that_exist_here_and_say_whence():
    assert len(numbers.published()) == 2 * (12 + 10) + 3 + 5 + 5 + 8  # the paper, its predecessor, others
    for table in [*read_yaml(numbers.PAPER), *read_yaml(numbers.OTHERS)]:
        assert (REPOSITORY / f"config/datasets/{table['dataset']}.yaml").is_file()
        assert (REPOSITORY / f"sat_core/models/{table['model'].replace('-', '_')}.py").is_file()
        assert len(table["source"]) > 40 and table["label"]
        for epsilon, rows in table["accuracy"].items():
            assert 0 < Epsilon.parse(epsilon).value < 1 and rows.keys() <= defense_names()
            for row in rows.values():
                order = [row[name] for name in numbers.AFTER if name in row]
                assert order == sorted(order, reverse=True) and set(row) <= {*numbers.AFTER, "trivial"}
                assert 0 <= min(order) <= max(order) <= 100


@pytest.mark.parametrize("name", sorted(defense_names()))
def test_the_documentation_has_each_defense_with_its_options_and_defaults(name):
    composed, chosen = (line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}` |"))
    assert composed.count("|") == 7 and chosen.count("|") == 4
    for option, field in defenses.find(name).model_fields.items():
        shown = "must be set" if field.is_required() else str(field.default).replace("'", "")
        assert f"`{option}` {shown}" in chosen, (option, shown)
