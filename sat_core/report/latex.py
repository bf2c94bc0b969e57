"""A table for a paper: LaTeX with booktabs and siunitx."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pandas as pd

from sat_core.report.render import MISSING, STALE, TRIVIAL, Cell, Sheet, spread_out

PLUS_MINUS = r" \pm "
NUMBER = r"[+−]?\d+(\.\d+)?"
SIUNITX = r"\sisetup{detect-all, separate-uncertainty, retain-explicit-plus, table-align-text-post=false}"
"""Understood by versions 2 and 3, which do not print a spread of zero: that is set as text."""
SPECIAL: dict[str, str | int | None] = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"<": "$<$", ">": "$>$", "|": r"\textbar{}", "[": "{[}"},
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
    """A booktabs table, aligned by siunitx, scaled down if it were wider than a line.

    The document needs ``\\usepackage{booktabs,graphicx,siunitx,xcolor}``. In a class of two columns a table that would
    be too wide for one spans both (``table*``).
    """

    def mark(cell: Cell) -> str:
        marks = escape(TRIVIAL * cell.trivial + STALE * cell.stale)
        before = r"\bfseries " * cell.best + r"\color{red} " * cell.trivial
        after = rf" {{\rlap{{{marks}}}}}" if marks else ""
        if not re.fullmatch(NUMBER, cell.text):
            return f"{{{escape(cell.text)}{after}}}"
        if cell.spread.strip(" 0.") or not cell.spread:
            return f"{before}{cell.text.replace('−', '-')}{PLUS_MINUS * bool(cell.spread)}{cell.spread.strip()}{after}"
        spread, bold = cell.spread.replace(" ", r"\phantom{0}"), r"\boldmath" * cell.best
        return f"{{{before}{bold}${cell.text}{PLUS_MINUS}{spread}${after.strip()}}}"

    def small(text: str) -> str:
        return rf"{{\scriptsize {escape(text.replace(f' {TRIVIAL}', TRIVIAL))}}}"

    index, lines = [], []
    for name, below, line in spread_out(sheet.cells.apply(of_one_width), mark, small):
        *outer, inner = map(escape, name)
        index.append((*outer, rf"\quad {{\scriptsize {escape(below)}}}" if below else inner))
        lines.append(line)
    columns = sheet.cells.columns
    depth = len(index[0])
    body = pd.DataFrame(lines, index=pd.MultiIndex.from_tuples(index), columns=columns.map(escaped))
    first = sheet.note.partition(". ")[0]
    text = body.style.to_latex(
        hrules=True,
        column_format="l" * depth + "".join(alignment(sheet.cells.iloc[:, i]) for i in range(len(columns))),
        multicol_align="c",
        multirow_align="naive",
        position_float="centering",
        environment="table*" if wide(sheet.cells, index) else None,
        caption=(escape(sheet.note), f"{{{escape(first)}}}"),
        label=f"tab:{label}",
    )
    text = with_rules(text, columns, [row[:-1] for row in index])
    scaled = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    text = text.replace(r"\begin{tabular}", f"\\smallskip\\small\n{SIUNITX}\n{scaled}\n\\begin{{tabular}}")
    return text.replace(r"\end{tabular}", "\\end{tabular}}")


def of_one_width(column: pd.Series) -> pd.Series:
    """With spaces where shorter spreads lack digits."""
    longest = max(len(cell.spread) for cell in column)
    return column.map(lambda cell: replace(cell, spread=cell.spread and cell.spread.rjust(longest)))


def wide(cells: pd.DataFrame, index: list[tuple[str, ...]]) -> bool:
    """Whether a table is too wide for a column of 3.25 inches, even scaled by 0.8: guessed from the letters in it."""
    names = [max(map(len, level)) for level in zip(*index, strict=True)]
    texts = [
        max(len(text) for cell in cells.iloc[:, i] for text in (cell.plain, *cell.below.values()))
        for i in range(cells.shape[1])
    ]
    return sum(4.4 * letters + 12 for letters in [*names, *texts]) > 3.25 * 72 / 0.8


def alignment(cells: pd.Series) -> str:
    """A column that siunitx aligns at the decimal point, wide enough for its numbers."""
    texts = [cell.text for cell in cells if re.fullmatch(NUMBER, cell.text)]
    if not texts:
        return "c"
    whole, decimals = zip(*(text.lstrip("+−").partition(".")[::2] for text in texts), strict=True)
    sign = "+" if any(text[0] in "+−" for text in texts) else ""
    spread = max(len(cell.spread.replace(".", "")) for cell in cells)
    room = f"({spread})" if spread else ""
    return f"S[table-format={sign}{max(map(len, whole))}.{max(map(len, decimals))}{room}]"


def escaped(column: Any) -> Any:
    """A column's title, or titles, for LaTeX; the last in braces, which keep siunitx off it."""
    if isinstance(column, tuple):
        return (*map(escape, column[:-1]), escaped(column[-1]))
    stacked = r"\\".join(f"{{{escape(line)}}}" for line in column.split("\n"))
    return rf"{{\shortstack{{{stacked}}}}}" if "\n" in column else f"{{{escape(column)}}}"


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
