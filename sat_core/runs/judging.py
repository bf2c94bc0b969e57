"""How far a judgement is, also within an attack of AutoAttack: by the forward passes of the network, counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from sat_core.judge import ATTACKS
from sat_core.runs.heartbeat import Heart

SHARES = {"apgd-ce": 0.02, "apgd-t": 0.15, "fab-t": 0.27, "square": 0.56}
"""Of AutoAttack's time, where the images stand to the end; for the first block, when nothing is known yet."""


def passes(attack: str, classes: int, iterations: int | None = None) -> int:
    """The most forward passes that an attack makes on a batch, as counted: steps of each target, queries, checks."""
    targets, checks, n, queries = min(9, classes - 1), 9, iterations or 100, iterations or 5000
    of_apgd, of_fab = n + 2, 2 * n + 3
    most = {"apgd-ce": of_apgd, "apgd-t": of_apgd * targets + 1, "fab-t": of_fab * targets + 1, "square": queries + 3}
    return checks + most[attack]


class Judging:
    """Tells a heartbeat, and a terminal, where a judgement of ``count`` blocks is."""

    def __init__(self, heart: Heart, count: int, classes: int, iterations: int | None = None) -> None:
        self.heart, self.count, self.most = heart, count, {name: passes(name, classes, iterations) for name in ATTACKS}
        self.seconds: list[float] = []
        """What each block that is done has taken."""

    def block_is_done(self, block: dict[str, Any]) -> None:
        """Its seconds, whoever judged it, say what the others will take."""
        self.seconds.append(sum(block["seconds"].values()))

    @contextmanager
    def attack(self, model: nn.Module, attack: str, block: dict[str, Any]) -> Iterator[None]:
        """Watch one attack on a block: a hook counts the forward passes and sees how many images they are of."""
        place = f"of block {len(self.seconds) + 1}/{self.count}"
        title = f"attack {ATTACKS.index(attack) + 1}/{len(ATTACKS)} ({attack}) {place}"
        most, spent, began = self.most[attack], sum(block["seconds"].values()), time.monotonic()
        before, now = work(block["broken_by"], attack)
        bar = tqdm(total=most, desc=title, leave=False, disable=None)
        made = 0

        def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal made
            made += 1
            bar.update()
            done = before + now * min(made / most, 1.0)
            left = self.left(spent + time.monotonic() - began, done)
            self.heart.tell(f"{title}, {len(inputs[0])} images left", (len(self.seconds) + done) / self.count, left)

        hook = model.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()
            bar.close()

    def left(self, spent: float, done: float) -> float:
        """Seconds, from those ``spent`` on this block, of which a share is ``done``, and from the blocks before it."""
        whole = sum(self.seconds) / len(self.seconds) if self.seconds else spent / done
        return max(whole - spent, 0.0) + whole * (self.count - len(self.seconds) - 1)


def work(broken_by: list[str], attack: str) -> tuple[float, float]:
    """The shares of a block's work that lie before an attack, and in it, if no more images are broken."""
    standing, parts = len(broken_by) - broken_by.count("clean"), {}
    for name in ATTACKS:
        parts[name] = SHARES[name] * standing
        standing -= broken_by.count(name)
    before = [parts[name] for name in ATTACKS[: ATTACKS.index(attack)]]
    whole = sum(parts.values()) or 1.0
    return sum(before) / whole, parts[attack] / whole
