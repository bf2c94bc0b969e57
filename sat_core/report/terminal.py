"""A study's status on a terminal: once, or for as long as one watches."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sat_core.report.status import WORDS, State, Status, look
from sat_core.runs.heartbeat import duration
from sat_core.study import Study

EVERY = 5.0
"""Seconds between two looks."""
STYLES = dict.fromkeys(("training", "judging", "measuring"), "cyan") | {
    "failed": "bold red",
    "lost": "bold magenta",
    "queued": "blue",
    "stale": "yellow",
    "waiting": "dim",
    "done": "green",
}


def show(study: Study, watch: bool = False) -> bool:
    """Print where every run is, a line each; with ``watch`` until all is complete or Ctrl-C. Returns if it is."""
    console = Console(width=None if sys.stdout.isatty() else 1000)  # in a file a line is as long as it is
    status = watched(study, console) if watch else look(study)
    console.print(totals(status), lines(status.states), sep="")
    return status.complete


def watched(study: Study, console: Console) -> Status:
    """The last status seen. The most interesting runs come first, as a screen may not hold all."""
    status = look(study)
    try:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while not status.complete:
                states = sorted(status.states, key=lambda state: WORDS.index(state.word))
                live.update(Group(totals(status), lines(states)), refresh=True)
                time.sleep(EVERY)
                status = look(study)
    except KeyboardInterrupt:
        pass
    return status


def totals(status: Status) -> Text:
    """All of it in two lines."""
    said = Text(f"{status.study.path}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n{len(status.states)} runs")
    for word, number in status.counts.items():
        said.append(", ").append(f"{number} {word}", STYLES[word])
    if status.complete:
        said.append(". All is complete.")
    elif status.products:
        said.append(f". To be made: {', '.join(status.products)}.")
    elif left := status.left:
        said.append(f". {left[0].upper()}{left[1:]}.")
    return said.append("\n")


def lines(states: list[State]) -> Table:
    """A line a run: its address, without what all share; what it is doing; and the time that will take."""
    paths = [state.run.id.path for state in states]
    common = os.path.commonpath(paths) if len(paths) > 1 else ""
    names = [os.path.relpath(path, common) if common else path for path in paths]
    heading = f"run in {common}" if common else "run"
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(heading, no_wrap=True, min_width=max(map(len, names)))
    table.add_column("", no_wrap=True, min_width=max(len(state.word) for state in states))
    table.add_column("")  # what gives way on a narrow terminal
    table.add_column("left", no_wrap=True, justify="right", min_width=len("99 min"))
    for name, state in zip(names, states, strict=True):
        left = sum(filter(None, state.left.values()))
        text = Text(state.text, no_wrap=True, overflow="ellipsis")
        table.add_row(name, Text(state.word, STYLES[state.word]), text, duration(left) if left else "")
    return table
