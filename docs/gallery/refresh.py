"""Draw a picture of each kind of figure from the demo, small, and write docs/gallery.md: `make gallery`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from docs.pictures import shrink  # noqa: E402
from sat_core.report import products  # noqa: E402
from sat_core.report.figures import write_figure  # noqa: E402
from sat_core.report.kinds import FIGURES  # noqa: E402
from sat_core.study import Study  # noqa: E402

WIDTH = 640
STUDIES = ("config/demo.yaml", "docs/gallery/gallery.yaml")
"""What is drawn without being asked for, and what only on request."""
HEAD = """\
# Gallery

One picture of each kind of figure, from the demo study, and the command that draws it: as png and pdf, in
`results/<study>/figures/`. `snakemake` draws those that a study needs by itself; [the report](studies.md) has them all,
and lets you zoom into some and turn others. Made by `make gallery`.
"""


def main() -> None:
    """Draw, shrink and describe all kinds; say what is missing where the studies are not complete."""
    sections = [section(kind) for kind in FIGURES]
    (HERE.parent / "gallery.md").write_text("\n".join([HEAD, *sections]), encoding="utf-8")
    kept = {f"{kind}.png" for kind in FIGURES}
    for picture in HERE.glob("*.png"):
        if picture.name not in kept:
            picture.unlink()


def section(kind: str) -> str:
    """The picture of a kind under its title, with how it is read and made."""
    about = FIGURES[kind]
    study = Study(STUDIES[about.on_request])
    (table,) = study.file.tables
    if not products.figure(study, table, kind).is_possible:
        sys.exit(f"error: nothing to draw {kind} from: snakemake --configfile {study.path} first")
    shrink(write_figure(study, table, kind), HERE / f"{kind}.png", WIDTH)
    command = f"python -m sat_core figure --study {study.path} --table {table} --kind {kind}"
    return f"## {about.title}\n\n    {command}\n\n![{about.alt}](gallery/{kind}.png)\n\n{about.caption}\n"


if __name__ == "__main__":
    main()
