"""Networks by name: the file ``<name>.py`` in this folder holds a function of that name, with ``_`` for ``-``.

It takes (image, classes), image being (channels, height, width), and returns a module that maps float32 (N, C, H, W),
normalised, to logits (N, classes); ValueError where it does not fit. :func:`build` adds the normalisation, so that
whatever stands outside works on plain pixels in [0, 1].
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sat_core import plugins
from sat_core.errors import ConfigError, in_one_line, unknown

Shape = tuple[int, int, int]
"""Channels, height, width."""


class Normalized(nn.Module):
    """A network that normalises its own input, so that attacks work on plain pixels.

    With ``in_bfloat16`` its layers compute in that precision (weights, input and logits stay float32). Where it is
    compiled, that is for batches of ``compiled_size``; others pass through it as it is written.
    """

    in_bfloat16 = False
    mean: Tensor
    std: Tensor
    compiled_size: int | None = None

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        as_written = self.compiled_size not in (None, len(x))
        with torch.compiler.set_stance("force_eager") if as_written else contextlib.nullcontext():
            if not self.in_bfloat16:
                return self.network(x)
            with torch.autocast(x.device.type, torch.bfloat16):
                return self.network(x).float()


@cache
def names() -> frozenset[str]:
    """The networks that there are."""
    return frozenset(file.stem.replace("_", "-") for file in Path(__file__).parent.glob("[!_]*.py"))


def build(
    name: str, image: Shape, classes: int, mean: list[float], std: list[float], file: str | None = None
) -> Normalized:
    """The network ``name`` for images of a shape, freshly initialised from torch's global RNG.

    ``file``: the Python file that its function is in, if it is none of the package's, or ``robustbench``. What makes it
    is called with (image, classes), or with nothing if it needs nothing. Raises ConfigError for an unknown name, and
    for a network that does not fit the images.

    Example:
        >>> import torch
        >>> from sat_core import models
        >>> model = models.build("cnn", image=(1, 8, 8), classes=10, mean=[0.305], std=[0.376])
        >>> model(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    make = _builder(name, file)
    channels, height, width = image
    if not len(mean) == len(std) == channels:
        raise ConfigError(f"mean and std need one number for each of the {channels} channels")
    try:
        network = make(image, classes) if _takes_arguments(name, make) else make()
        if not isinstance(network, nn.Module):
            raise ConfigError(f"model '{name}' makes no torch module: {type(network).__name__}")
        model = Normalized(network, mean, std)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"model '{name}' does not fit images of {channels}x{height}x{width} (C x H x W): {error}"
        ) from None
    return model.to(memory_format=_layout(model, image) if file else torch.channels_last)  # type: ignore[call-overload]


def _layout(model: Normalized, image: Shape) -> torch.memory_format:
    """channels_last, which is faster, unless a network of someone's own counts on NCHW, as ``x.view(n, -1)`` does."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial = copy.deepcopy(model).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            trial(torch.zeros(2, *image))
    except Exception:  # of someone else's code; what does not run either way is said where it is used
        return torch.contiguous_format
    return torch.channels_last


def _builder(name: str, file: str | None) -> Callable[..., nn.Module]:
    if file == "robustbench":
        return importlib.import_module(f"{__name__}._robustbench").builder(name)
    if file is not None:
        module = plugins.load(file)
        if hasattr(module, name):
            return getattr(module, name)
        if name not in (offered := plugins.read(Path(file)).networks):
            raise ConfigError(f"plugin {file}: {unknown('model', name, offered)}")
        return getattr(module, offered[name])
    if name not in names():
        raise ConfigError(unknown("model", name, names()))
    function = name.replace("-", "_")
    return getattr(importlib.import_module(f"{__name__}.{function}"), function)


def _takes_arguments(name: str, make: Callable[..., nn.Module]) -> bool:
    """Whether it is to be called with (image, classes): what it needs decides."""
    parameters = inspect.signature(make).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) not in (0, 2):
        raise ConfigError(f"model '{name}' needs ({', '.join(needed)}): (image, classes) is expected, or nothing")
    return bool(needed)


def compute_in(precision: Literal["float32", "bfloat16", "tf32"], model: Normalized) -> None:
    """From now on compute in this precision; tf32 is that of NVIDIA's matrix units, and concerns the whole process."""
    model.in_bfloat16 = precision == "bfloat16"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # not `fp32_precision`: who asks in this way would be refused


def compile_in_place(model: Normalized, batch_size: int) -> None:
    """From now on run the network as torch.compile makes it, on GPUs with CUDA graphs, where the batch is whole.

    Batches of other sizes would each need a graph of their own. Where there is no compiler, and for whatever cannot be
    compiled, all stays as it was.
    """
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True
    model.network.forward = torch.compile(model.network.forward, mode="reduce-overhead", dynamic=False)
    model.compiled_size = batch_size


def check(name: str, image: Shape, classes: int, mean: list[float], std: list[float], file: str | None = None) -> None:
    """Raise ConfigError unless the network exists and gives logits of these images: two are passed through it.

    Not on the device "meta", whose operators import torch.compile's compiler, in as much time as torch itself.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model = build(name, image, classes, mean, std, file)
            logits = model.eval()(torch.zeros(2, *image))
    except RuntimeError as error:
        size = "x".join(map(str, image))
        raise ConfigError(f"model '{name}' does not fit images of {size} (C x H x W): {in_one_line(error)}") from None
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(f"model '{name}' gives {found} for two images, not (2, {classes}): a logit for each class")
    if not any(True for _ in model.parameters()):
        raise ConfigError(f"model '{name}' has no parameters: layers in a plain list are not seen, nn.ModuleList's are")
