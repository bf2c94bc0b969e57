"""Write the JSON schemas of study and dataset files, which editors use to complete and check them as one types."""

import json
from pathlib import Path

from sat_core.config import DatasetFile, StudyFile

for name, model in (("study", StudyFile), ("dataset", DatasetFile)):
    path = Path(__file__).with_name(f"{name}.schema.json")
    path.write_text(json.dumps(model.model_json_schema(), indent=2) + "\n", encoding="utf-8")
