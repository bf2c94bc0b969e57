"""Results that were damaged or edited are told or mended, and never believed."""

import json
import random
from pathlib import Path

import pytest
from helpers import PSAT, results

from sat_core.__main__ import main
from sat_core.errors import ConfigError
from sat_core.report.tables import write_table

FILES = ("checkpoint.pt", "model.safetensors", "history.csv", "run.json", "autoattack.csv", "autoattack.json")


@pytest.mark.parametrize("name", [*FILES, "data"])
def test_truncation_anywhere_is_told_or_mended_and_never_believed(judged, name, capsys):
    run = judged.run(PSAT)
    expected = results(run)
    path = Path("results/tiny/data/digits.safetensors") if name == "data" else run.folder / name
    content, told = path.read_bytes(), 0
    offsets = [*random.Random(0).sample(range(len(content)), 19), len(content) - 1]
    words = ["--study", "tiny.yaml", "--run", PSAT]
    for offset in offsets:
        path.write_bytes(content[:offset])
        statuses = [main([verb, *words]) for verb in ("train", "evaluate")]
        statuses.append(main(["table", "--study", "tiny.yaml", "--table", "digits"]))
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert all(s == 0 or (s == 2 and "error: " in error) for s in statuses)
        told += any(statuses)
        if not any(statuses):
            assert results(run) == expected
        path.write_bytes(content)
        for rest in FILES:
            if not (run.folder / rest).exists():  # pragma: no cover
                raise AssertionError(rest)


def test_an_edited_result_is_not_believed(judged):
    path = judged.run(PSAT).folder / "autoattack.json"
    true, edited = path.read_text(), path.read_text().replace('"robust": 0', '"robust": 1')
    assert json.loads(edited)["robust"] >= 1
    path.write_text(edited)
    write_table(judged, "digits")
    assert path.read_text() == true  # from what was kept
    for place in (path, path.parent / ".kept" / path.name):
        place.unlink()
        place.write_text(edited)
    with pytest.raises(ConfigError, match="damaged"):
        write_table(judged, "digits")
