"""Datasets as tensors: uint8 images that become float32 in [0, 1], and the train / validation / test split."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sat_core.config import ConfigError, Data, Run
from sat_core.files import write_json

log = logging.getLogger(__name__)

SPLIT_SEED = 0
"""The validation images are the same for every run of a dataset, whatever the run's own seed."""


@dataclass(frozen=True)
class Images:
    """Images and labels kept as the files hold them.

    ``pixels``: uint8 (N, C, H, W) in [0, scale]; ``labels``: int64 (N,); ``scale``: the pixel value that means 1.
    """

    pixels: Tensor
    labels: Tensor
    scale: int = 255

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images float32 (n, C, H, W) in [0, 1] and their labels (n,)."""
        return self.pixels[index].to(torch.float32) / self.scale, self.labels[index]

    def subset(self, index: Tensor | slice) -> Images:
        return Images(self.pixels[index], self.labels[index], self.scale)

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device), self.scale)


def load_train(data: Data, name: str, validation_fraction: float) -> tuple[Images, Images]:
    """Training and validation images; the split is stratified by class and always the same."""
    whole = _checked(data, name, _load(data, name, train=True))
    train, validation = stratified_split(whole.labels, validation_fraction)
    return whole.subset(train), whole.subset(validation)


def stratified_split(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Indices of the larger and the smaller part, sorted; ``fraction`` of each class goes to the smaller one."""
    from sklearn.model_selection import train_test_split  # takes two seconds to import

    larger, smaller = train_test_split(
        np.arange(len(labels)), test_size=fraction, stratify=labels.numpy(), random_state=SPLIT_SEED
    )
    return torch.from_numpy(np.sort(larger)), torch.from_numpy(np.sort(smaller))


def load_test(data: Data, name: str) -> Images:
    """The test images. Only evaluation and what follows it may call this."""
    return _checked(data, name, _load(data, name, train=False))


def describe(run: Run) -> None:
    """Fetch a run's dataset if need be, and write ``data/<dataset>.json``: counts and a checksum of each part."""
    train, validation = load_train(run.data, run.dataset, run.validation.fraction)
    parts = {"train": train, "validation": validation, "test": load_test(run.data, run.dataset)}
    content = {
        part: {
            "images": len(images),
            "per_class": images.labels.bincount(minlength=run.data.classes).tolist(),
            "sha256": hashlib.sha256(images.pixels.numpy().tobytes() + images.labels.numpy().tobytes()).hexdigest(),
        }
        for part, images in parts.items()
    }
    write_json(Path("results", run.study, "data", f"{run.dataset}.json"), content)
    log.info("%s: %s", run.dataset, ", ".join(f"{len(images)} {part} images" for part, images in parts.items()))


def _load(data: Data, name: str, train: bool) -> Images:
    if data.source == "digits":
        return _digits(train)
    return _torchvision(data, name, train)


def _torchvision(data: Data, name: str, train: bool) -> Images:
    from torchvision import datasets  # takes five seconds to import, and digits do without

    dataset_class = {"mnist": datasets.MNIST, "fashion": datasets.FashionMNIST}[data.source]
    try:
        dataset = dataset_class(data.root, train=train, download=False)
    except (RuntimeError, OSError):
        try:
            dataset = dataset_class(data.root, train=train, download=True)
        except (RuntimeError, OSError) as error:
            raise ConfigError(
                f"dataset '{name}' is not under '{data.root}' and could not be downloaded ({error}): connect to the "
                f"network, or set data.root to a folder that holds {dataset_class.__name__}/raw"
            ) from None
    return Images(dataset.data.unsqueeze(1), dataset.targets)


def _digits(train: bool) -> Images:
    """Scikit-learn's 1,797 handwritten digits, 8x8 with 17 grey levels; a fixed stratified 20 % are the test images."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    whole = Images(pixels, torch.from_numpy(bunch.target.astype(np.int64)), scale=16)
    train_index, test_index = stratified_split(whole.labels, 0.2)
    return whole.subset(train_index if train else test_index)


def _checked(data: Data, name: str, images: Images) -> Images:
    if tuple(images.pixels.shape[1:]) != data.image:
        found, wanted = ("x".join(map(str, shape)) for shape in (images.pixels.shape[1:], data.image))
        raise ConfigError(f"dataset '{name}': its images are {found} (C x H x W) but data.image says {wanted}")
    if not 0 <= int(images.labels.min()) <= int(images.labels.max()) < data.classes:
        low, high = int(images.labels.min()), int(images.labels.max())
        raise ConfigError(f"dataset '{name}': labels lie in {low}..{high}, outside 0..{data.classes - 1}")
    return images
