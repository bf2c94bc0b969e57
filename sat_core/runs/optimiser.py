"""The optimiser of a training, its learning rate, and the average of its weights: torch's own."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sat_core.fields import at
from sat_core.study.settings import Training


class SGD(torch.optim.SGD):
    """Torch's, called as it is written.

    Its methods come wrapped in what hides them from torch.compile, which is nothing that would compile them here, but
    imports the compiler, in as much time as torch itself.
    """

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def optimizer(config: Training, model: nn.Module) -> torch.optim.Optimizer:
    """For all parameters of the network."""
    if config.optimizer == "sgd":
        return SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, fused=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(model.parameters(), config.lr, (config.momentum, 0.999), weight_decay=config.weight_decay, fused=True)


def scheduler(config: Training, optimizer: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate; to be stepped after every epoch or, of :func:`is_per_step`, each of its ``steps``."""
    unit = steps if is_per_step(config) else 1
    total, warm = config.epochs * unit, at(config.warm_up, config.epochs) * unit
    if config.schedule == "one-cycle":
        return lr_scheduler.OneCycleLR(optimizer, config.lr, total, pct_start=warm / total or 0.3, cycle_momentum=False)
    main: lr_scheduler.LRScheduler
    if config.schedule == "steps":
        main = lr_scheduler.MultiStepLR(optimizer, [(epoch * unit) - warm for epoch in config.milestone_epochs])
    elif config.schedule == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, total - warm)
    else:
        main = lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total - warm)
    if not warm:
        return main
    rise = lr_scheduler.LinearLR(optimizer, 1 / (warm + 1), 1.0, warm)
    return lr_scheduler.SequentialLR(optimizer, [rise, main], [warm])


def is_per_step(config: Training) -> bool:
    """Whether the learning rate changes with each step, not each epoch."""
    return config.schedule == "one-cycle" or config.schedule_per == "step"


def average(config: Training, model: nn.Module) -> AveragedModel | None:
    """A copy of the network to hold the averaged weights, if there are to be any.

    Of an exponential average batch norm's statistics are averaged, too; an even one of epochs has them measured anew.
    """
    if config.average == "ema":
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average_decay), use_buffers=True)
    return AveragedModel(model) if config.average == "swa" else None
