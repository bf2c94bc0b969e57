"""Write envs/sat-core.yaml, the conda environment of every rule, from uv.lock; `make envs` calls this."""

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
EXPORT = "export --locked --no-dev --extra workflow --no-hashes --no-annotate --no-header --no-emit-project --quiet"
HEAD = """\
# Made by `make envs` from uv.lock: do not edit. Python and pip come from conda, everything else from the package index.
# The versions stand here, not in a pin file beside this one: Snakemake only warns when such a file cannot be used.
channels: [conda-forge, nodefaults]
dependencies:
  - python=3.11.13
  - pip=25.2
  - pip:
"""


def content(root: Path = HERE.parent) -> str:
    """The environment as YAML text; raises CalledProcessError if uv.lock does not fit pyproject.toml."""
    uv = shutil.which("uv") or str(root / ".tools/bin/uv")
    pins = subprocess.run([uv, *EXPORT.split()], cwd=root, capture_output=True, text=True, check=True).stdout
    return HEAD + "".join(f'      - "{pin}"\n' for pin in pins.splitlines())


if __name__ == "__main__":
    (HERE / "sat-core.yaml").write_text(content(), encoding="utf-8")
