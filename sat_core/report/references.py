"""The works that a study's tables and figures rest on, in BibTeX."""

from __future__ import annotations

import re
from pathlib import Path

from sat_core.study import Study, usual_names

REFERENCES = Path(__file__).with_name("references.bib")
CITED = ["sitawarin2021", "croce2020", "zou2008"]
"""The paper, the judge and the intervals, whatever the defenses."""


def references(study: Study) -> str:
    """BibTeX of the works that a reader of the study's tables and figures will want to cite."""
    asked = study.file.tables.values()
    defenses = {study.base_defense(name) for table in asked for name in table.defenses}
    cited = {*CITED, *(usual_names().get(name, {}).get("work") for name in defenses)}
    cited |= {"wu2020"} if any(run.training.awp for run in study.runs) else set()
    cited |= {"li2018"} if any(table.landscapes for table in asked) else set()
    cited |= {"holm1979"} if any(len(table.defenses) > 1 for table in asked) else set()
    entries = REFERENCES.read_text(encoding="utf-8").split("\n\n")
    return "\n\n".join(entry.strip() for entry in entries if re.findall(r"@\w+\{(\w+),", entry)[0] in cited) + "\n"
