"""A CUDA graph for the processor: what a graph may do and no more, so that what goes wrong there goes wrong here.

The first run of the work is recorded operation by operation, with the very tensors that each read and wrote; a replay
runs the operations again on those tensors. No Python of the work runs again, hence a number or a branch that it had is
baked in, as on a GPU; and asking a tensor for its value is refused, as a stream that is captured refuses it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("aten::_local_scalar_dense", "aten::nonzero")
"""For these a processor waits for the GPU."""


def storages(values: object) -> set[int]:
    return {value.untyped_storage()._cdata for value in tree_leaves(values) if isinstance(value, Tensor)}


class Tape(TorchDispatchMode):
    """Records while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in WAITS:
            raise RuntimeError(f"{function} synchronizes")
        found = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        for function, args, kwargs, recorded in self.done:
            found = function(*args, **kwargs)
            given = storages((args, kwargs))
            for buffer, value in zip(tree_leaves(recorded), tree_leaves(found), strict=True):
                if isinstance(buffer, Tensor) and not storages(buffer) & given:  # else a view, or changed in place
                    buffer.copy_(value)


def tape(work: Callable[[], None]) -> Callable[[], None]:
    """As :func:`sat_core.graphs.cuda_graph`."""
    recorder = Tape()
    with recorder:
        work()

    def replay() -> None:
        with torch.no_grad():
            recorder.replay()

    return replay


class Waits(TorchDispatchMode):
    """Counts how often a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name in WAITS
        return function(*args, **(kwargs or {}))
