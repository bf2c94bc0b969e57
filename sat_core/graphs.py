"""Work on tensors, recorded once as a CUDA graph on buffers that stay, then replayed for every call of its kind.

A small network's PGD step is some fifty kernels, each of which a GPU finishes before the processor has launched the
next; a graph launches them at once. What is recorded is a ``functools.partial`` of a function that changes some of
its tensors in place. Its tensors are copied into the buffers, whatever else it holds is baked in and therefore part of
its kind; so are a network's weights, by their place in memory: an optimiser that changes them there may come between.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from sat_core.errors import ConfigError, lacks_memory

log = logging.getLogger(__name__)

Work = Callable[[], None]
SWITCH = "SAT_CORE_GRAPHS"
KEPT = 2
"""So many graphs are kept, the latest: each holds the memory that its work takes, P-SAT anew each epoch."""


@cache
def side_stream() -> torch.cuda.Stream:
    """The stream on which graphs are recorded; one, as cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream()


def cuda_graph(work: Work) -> Work:
    """Do ``work``, and return what does it again: its CUDA graph. Raises RuntimeError where it waits for the GPU.

    That is found out beforehand, as a capture that fails would leave the generator of random numbers unusable: raises
    ConfigError then, which says how to do without. Other threads (one that pins memory) may call CUDA meanwhile.
    """
    here, aside = torch.cuda.current_stream(), side_stream()
    aside.wait_stream(here)
    try:
        with forbidding_waits(), torch.cuda.stream(aside):
            work()
    finally:
        here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            work()
    except RuntimeError as error:
        if lacks_memory(error):
            raise
        raise ConfigError(
            f"a step of the attack cannot be captured as a CUDA graph: {str(error).splitlines()[0]}; with {SWITCH}=0 "
            "in the environment the training does without, and finds the same"
        ) from error
    finally:
        torch.cuda.set_stream(here)  # torch does not, where it is the end of the capture that fails
    return graph.replay


def are_wanted() -> bool:
    """Whether nobody has asked to do without, as is possible in the middle of a training: no setting, no other code."""
    return os.environ.get(SWITCH) != "0"


@contextlib.contextmanager
def forbidding_waits() -> Iterator[None]:
    """Whatever waits for the GPU raises RuntimeError; that torch calls this a prototype is no news to a user."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Graphs:
    """Graphs of a training's attack steps, for whole batches of ``size`` images; others are attacked as written.

    ``stopping``: also of attacks that stop samples. In a graph these stay in the batch, which for a network that leaves
    most of a GPU idle costs nothing, and the processor asks every eighth step whether any still moves. ``capture``:
    (work) -> what does it again, having done it.
    """

    def __init__(self, size: int, stopping: bool = True, capture: Callable[[Work], Work] = cuda_graph) -> None:
        self.size, self.stopping, self.capture = size, stopping, capture
        self.found: dict[Hashable, Graph | None] = {}

    def fit(self, size: int, loss: object, rule: object | None) -> bool:
        """Whether an attack on so many images with this loss and rule is to be a graph."""
        return size == self.size and is_open(loss) and (rule is None or (self.stopping and is_open(rule)))

    def begin(self, call: partial[None]) -> tuple[Graph, list[Tensor]] | None:
        """Do ``call``, once, by its graph: that and the tensors of the call; None, and nothing changed, if it has none.

        To have what it did, and its replays, :meth:`Graph.unload` them.
        """
        tensors: list[Tensor] = []
        kind = split(call, tensors)
        if not is_hashable(kind):
            return None
        if kind in self.found:
            if graph := self.found[kind]:
                graph.load(tensors)
                graph.replay()
            return (graph, tensors) if graph else None
        try:
            graph = Graph(call, tensors, self.capture)
        except RuntimeError as error:
            if "synchroniz" not in str(error) and not lacks_memory(error):
                raise
            log.warning("attacked without a CUDA graph, as it waits for the GPU or takes too much memory: %s", error)
            graph = None
        self.found[kind] = graph
        while len(self.found) > KEPT:
            del self.found[next(iter(self.found))]
        return (graph, tensors) if graph else None


class Graph:
    """One call on buffers of its own, done once; ``replay`` does it again."""

    def __init__(self, call: partial[None], tensors: list[Tensor], capture: Callable[[Work], Work]) -> None:
        self.buffers = [tensor.detach().clone() for tensor in tensors]
        self.call = put(call, iter(self.buffers))
        before = [buffer._version for buffer in self.buffers]
        self.replay = capture(self.call)
        self.changed = [i for i, buffer in enumerate(self.buffers) if buffer._version != before[i]]

    def load(self, tensors: list[Tensor]) -> None:
        """Take the values of these tensors."""
        for buffer, tensor in zip(self.buffers, tensors, strict=True):
            buffer.copy_(tensor)

    def unload(self, tensors: list[Tensor]) -> None:
        """Give these tensors the values that the call has changed."""
        for i in self.changed:
            tensors[i].copy_(self.buffers[i])


def is_open(function: object) -> bool:
    """Whether all the tensors that a function works on can be seen: it is a partial of one that closes over nothing."""
    return isinstance(function, partial) and not any(
        getattr(part, "__closure__", None) or (isinstance(part, partial) and not is_open(part))
        for part in (function.func, *function.args, *function.keywords.values())
    )


def is_hashable(kind: Hashable) -> bool:
    """Whether one kind of call can be told from another by it."""
    try:
        hash(kind)
    except TypeError:
        return False
    return True


def split(value: Any, tensors: list[Tensor]) -> Hashable:
    """Append the tensors in ``value`` (in partials, dataclasses, dicts) to the list; returns what else there is."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.shape, value.dtype, value.device
    if isinstance(value, nn.Module):
        return value, tuple(tensor.data_ptr() for tensor in (*value.parameters(), *value.buffers()))
    if isinstance(value, partial):
        return split(value.func, tensors), split(value.keywords, tensors), *(split(v, tensors) for v in value.args)
    if isinstance(value, (list, tuple)):
        return type(value), *(split(v, tensors) for v in value)
    if isinstance(value, dict):
        return tuple((key, split(v, tensors)) for key, v in value.items())
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(split(getattr(value, field.name), tensors) for field in fields(value))
    return value


def put(value: Any, tensors: Iterator[Tensor]) -> Any:
    """``value`` with these in the place of its own tensors, in the order of :func:`split`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, partial):
        function, keywords = put(value.func, tensors), put(value.keywords, tensors)
        return partial(function, *(put(v, tensors) for v in value.args), **keywords)
    if isinstance(value, (list, tuple)):
        return type(value)(put(v, tensors) for v in value)
    if isinstance(value, dict):
        return {key: put(v, tensors) for key, v in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: put(getattr(value, field.name), tensors) for field in fields(value)})
    return value
