"""How a table looks: in text, in LaTeX, as a page of HTML. Knows nothing of what the numbers mean."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

MISSING, TRIVIAL, STALE = "—", "†", "‡"
OWN_LINES = ("95 %", "last epoch", "seeds", "seconds")
"""Labels of the smaller lines that come before those of published numbers."""


@dataclass(frozen=True)
class Cell:
    """What a reader sees of one cell: a number, its spread, and smaller lines below it, by label."""

    text: str = MISSING
    spread: str = ""
    below: dict[str, str] = field(default_factory=dict)
    best: bool = False
    trivial: bool = False
    stale: bool = False

    @property
    def plain(self) -> str:
        marks = TRIVIAL * self.trivial + STALE * self.stale
        return f"{self.text}{f' ± {self.spread}' if self.spread else ''}{f' {marks}' if marks else ''}"


@dataclass(frozen=True)
class Sheet:
    """A table for readers: a frame of :class:`Cell`, what must be known beside it, and the numbers for its csv."""

    cells: pd.DataFrame
    note: str
    data: pd.DataFrame


def markdown(sheet: Sheet) -> str:
    """The table in text, then its note."""

    def mark(cell: Cell) -> str:
        return f"**{cell.plain}**" if cell.best else cell.plain

    names, lines = [], []
    for name, label, line in spread_out(sheet.cells, mark, str):
        names.append([*name[:-1], f"↳ {label}"] if label else name)
        lines.append(line)
    flat = pd.DataFrame([[*name, *line] for name, line in zip(names, lines, strict=True)])
    titles = [" ".join(column) if isinstance(column, tuple) else column for column in sheet.cells.columns]
    headers = [*([""] * (flat.shape[1] - len(titles) - 1)), "defense", *titles]
    return f"{flat.to_markdown(index=False, headers=headers, disable_numparse=True)}\n\n{sheet.note}\n"


def spread_out(
    cells: pd.DataFrame, mark: Callable[[Cell], str], small: Callable[[str], str]
) -> Iterator[tuple[list[str], str, list[str]]]:
    """Row by row (name, "", texts), each followed by its smaller lines (name, label, texts)."""
    for index, row in cells.iterrows():
        name = list(index) if isinstance(index, tuple) else [index]
        yield name, "", [mark(cell) for cell in row]
        labels = dict.fromkeys(label for cell in row for label in cell.below)
        for label in sorted(labels, key=lambda label: label not in OWN_LINES):
            yield name, label, [small(cell.below[label]) if label in cell.below else "" for cell in row]


SPECIAL: dict[str, str | int | None] = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{
        "“": "``",
        "”": "''",
        "±": r"$\pm$",
        "−": "$-$",
        "ε": r"$\epsilon$",
        "∞": r"$_\infty$",
        MISSING: "---",
        TRIVIAL: r"$^\dagger$",
        STALE: r"$^\ddagger$",
    },
}
"""What LaTeX would not print as it stands."""


def escape(text: str) -> str:
    """``text`` for LaTeX."""
    return text.translate(str.maketrans(SPECIAL))


def latex(sheet: Sheet, label: str) -> str:
    """A booktabs table, scaled down if it were wider than a line.

    The document needs ``\\usepackage{booktabs,graphicx,xcolor}``.
    """

    def mark(cell: Cell) -> str:
        text = cell.text + (rf" {{\scriptsize ± {cell.spread}}}" if cell.spread else "")
        text = rf"\textbf{{{text}}}" if cell.best else text
        text = rf"\textcolor{{red}}{{{text}\rlap{{{TRIVIAL}}}}}" if cell.trivial else text
        text += STALE * cell.stale
        return text.translate(str.maketrans({sign: SPECIAL[sign] for sign in f"±{MISSING}{TRIVIAL}{STALE}"}))

    def small(text: str) -> str:
        return escape(text.replace(f" {TRIVIAL}", TRIVIAL))

    index, lines = [], []
    for name, below, line in spread_out(sheet.cells, mark, lambda text: rf"{{\scriptsize {small(text)}}}"):
        *outer, inner = map(escape, name)
        index.append((*outer, rf"\quad {{\scriptsize {escape(below)}}}" if below else inner))
        lines.append(line)
    columns = sheet.cells.columns
    depth = len(index[0])
    body = pd.DataFrame(lines, index=pd.MultiIndex.from_tuples(index), columns=columns.map(escaped))
    text = body.style.to_latex(
        hrules=True,
        column_format="l" * depth + "r" * len(columns),
        multicol_align="c",
        multirow_align="naive",
        position_float="centering",
        caption=escape(sheet.note),
        label=f"tab:{label}",
    )
    text = with_rules(text, columns, [row[:-1] for row in index])
    scaled = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    text = text.replace(r"\begin{tabular}", f"\\smallskip\\small\n{scaled}\n\\begin{{tabular}}")
    return text.replace(r"\end{tabular}", "\\end{tabular}}")


def escaped(column: Any) -> Any:
    """A column's title, or titles, for LaTeX."""
    return tuple(map(escape, column)) if isinstance(column, tuple) else escape(column)


def with_rules(text: str, columns: pd.Index, groups: list[tuple[str, ...]]) -> str:
    """Thin rules under the titles that span columns, and space between groups of rows; pandas has no word for them."""
    lines = text.splitlines(keepends=True)
    first, top, body = 1 + len(groups[0]), lines.index("\\toprule\n"), lines.index("\\midrule\n") + 1
    for i in reversed(range(1, len(groups))):
        if groups[i] != groups[i - 1]:
            lines.insert(body + i, "\\addlinespace\n")
    for level in reversed(range(columns.nlevels - 1)):
        heads = [column[: level + 1] for column in columns]
        starts = [i for i, head in enumerate(heads) if i == 0 or head != heads[i - 1]]
        spans = zip(starts, [*starts[1:], len(heads)], strict=True)
        rules = " ".join(rf"\cmidrule(lr){{{first + a + 1}-{first + b}}}" for a, b in spans)
        lines.insert(top + level + 2, f"{rules}\n")
    return "".join(lines)


STYLE = [
    {"selector": "", "props": "border-collapse: collapse; font-family: sans-serif; font-variant-numeric: tabular-nums"},
    {"selector": "caption", "props": "caption-side: bottom; text-align: left; padding-top: 1em; max-width: 60em"},
    {
        "selector": "th, td",
        "props": "padding: 0.3em 0.8em; text-align: right; vertical-align: top; white-space: nowrap",
    },
    {"selector": "thead th", "props": "text-align: center"},
    {"selector": "tbody th", "props": "text-align: left"},
    {"selector": "thead", "props": "border-top: 2px solid; border-bottom: 1px solid"},
    {"selector": "tbody", "props": "border-bottom: 2px solid"},
]


def as_html(sheet: Sheet, title: str) -> str:
    """A page with the table, whose smaller lines stand within their cells, and its note."""

    def mark(cell: Cell) -> str:
        text = html.escape(cell.plain)
        text = f"<strong>{text}</strong>" if cell.best else text
        text = f'<span style="color: #c00000">{text}</span>' if cell.trivial else text
        return text + "".join(f"<br><small>{html.escape(f'{a} {b}')}</small>" for a, b in cell.below.items())

    style = sheet.cells.map(mark).style.set_uuid("cells").set_table_styles(STYLE).set_caption(html.escape(sheet.note))
    page = style.to_html(doctype_html=True, sparse_index=False)
    return page.replace("<html>", '<html lang="en">', 1).replace("<head>", f"<head>\n<title>{title}</title>", 1)
