"""Datasets as tensors: uint8 images that become float32 in [0, 1], and the train / validation / test split.

A dataset is read, checked and split once; what comes out is kept as ``data/<dataset>.safetensors`` in the study's
folder, which every job maps into memory in no time.
"""

from __future__ import annotations

import hashlib
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sat_core.errors import ConfigError
from sat_core.runs import folder
from sat_core.runs.files import atomic, write_json
from sat_core.runs.images import Images
from sat_core.study import Run
from sat_core.study.fingerprint import changes, made_of
from sat_core.study.settings import Data
from sat_core.study.settings.data import visible

log = logging.getLogger(__name__)

PUBLIC = {
    "digits": (1_437, 360),
    "mnist": (60_000, 10_000),
    "fashion": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "imagenette": (9_469, 3_925),
}
"""Training and test images of the public datasets, to be known before they are downloaded."""
SPLIT_SEED = 0
"""The validation images are the same for every run of a dataset, whatever the run's own seed."""


def load(run: Run, *parts: str) -> list[Images]:
    """The named parts (``train``, ``validation``, ``test``) of a run's dataset, prepared first if need be.

    Only evaluation and what follows it may ask for ``test``. Raises ConfigError for data that is missing or wrong, and
    where the prepared images are not those that were written.
    """
    record = prepare(run)
    path, found = folder.data_file(run), []
    with safe_open(path, "pt") as file:
        for part in parts:
            pixels, labels = (file.get_tensor(f"{part}.{kind}") for kind in ("pixels", "labels"))
            images = Images(pixels, labels, int(file.metadata()["scale"]))
            if _checksum(images) != record[part]["sha256"]:
                raise ConfigError(f"{path} is damaged: its {part} images changed; delete it, it will be made again")
            found.append(images)
    folder.loaded(run, record, parts)
    return found


def prepare(run: Run) -> dict[str, Any]:
    """Read, check and split a dataset, unless that has been done with the same settings; returns its record.

    Writes ``data/<dataset>.safetensors`` and ``data/<dataset>.json``, the record (counts and checksums), in the study's
    folder.
    """
    path = folder.data_file(run)
    try:
        record = folder.data_record(run)
        if record and not changes(record["made_of"], run, "data") and _is_whole(path):
            return record
    except ConfigError as error:
        log.warning("%s", error)
    try:
        whole = _sample(run.data, _checked(run.data, _read(run.data, train=True)))
        test = _checked(run.data, _read(run.data, train=False))
        train, validation = stratified_split(whole.labels, run.validation.fraction)
    except ConfigError as error:
        raise ConfigError(f"dataset '{run.dataset}': {error}") from None
    parts = {"train": _subset(whole, train), "validation": _subset(whole, validation), "test": test}
    tensors = {f"{p}.{kind}": getattr(images, kind) for p, images in parts.items() for kind in ("pixels", "labels")}
    with atomic(path, "wb") as file:
        file.write(save(tensors, {"scale": str(whole.scale)}))
    record = {part: _description(images, run.data) for part, images in parts.items()}
    record["made_of"] = made_of(run, "data")
    write_json(path.with_suffix(".json"), record)
    log.info("%s: %s", run.dataset, ", ".join(f"{len(images)} {part} images" for part, images in parts.items()))
    return record


def _is_whole(path: Path) -> bool:
    """Whether the file is there and not cut off; that its images are the ones on record is for :func:`load` to say."""
    try:
        with safe_open(path, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def stratified_split(labels: Tensor, part: float | int) -> tuple[Tensor, Tensor]:
    """Indices of the rest and of the ``part``, sorted; it takes that fraction, or so many, evenly over the classes."""
    from sklearn.model_selection import train_test_split  # takes two seconds to import

    try:
        rest, taken = train_test_split(
            np.arange(len(labels)), test_size=part, stratify=labels.numpy(), random_state=SPLIT_SEED
        )
    except ValueError as error:
        raise ConfigError(f"{len(labels)} images cannot be split in two evenly, with {part} apart: {error}") from None
    return torch.from_numpy(np.sort(rest)), torch.from_numpy(np.sort(taken))


def check_sample(data: Data, there: int) -> None:
    """Raise ConfigError where no even sample of ``train_images`` can be had of the training images that are there."""
    wanted, most = data.train_images, there - data.classes
    if wanted is None or wanted == there:
        return
    if wanted > there:
        raise ConfigError(f"data.train_images asks for {wanted}, but there are only {there}")
    if wanted > most:
        raise ConfigError(f"data.train_images asks for {wanted} of {there}: a sample is of {most} at most, or of all")


def _sample(data: Data, images: Images) -> Images:
    check_sample(data, len(images))
    if data.train_images in (None, len(images)):
        return images
    return _subset(images, stratified_split(images.labels, data.train_images)[1])


def _subset(images: Images, index: Tensor) -> Images:
    return Images(images.pixels[index], images.labels[index], images.scale)


def _description(images: Images, data: Data) -> dict[str, Any]:
    return {
        "images": len(images),
        "per_class": images.labels.bincount(minlength=data.classes).tolist(),
        "sha256": _checksum(images),
    }


def _checksum(images: Images) -> str:
    digest = hashlib.sha256(images.pixels.numpy().data)
    digest.update(images.labels.numpy().data)
    return digest.hexdigest()


def _checked(data: Data, images: Images) -> Images:
    if tuple(images.pixels.shape[1:]) != data.image:
        found, wanted = ("x".join(map(str, shape)) for shape in (images.pixels.shape[1:], data.image))
        raise ConfigError(f"its images are {found} (C x H x W) but data.image says {wanted}")
    if not len(images):
        raise ConfigError(f"there are no images under '{data.root}'")
    low, high = int(images.labels.min()), int(images.labels.max())
    if low < 0 or high >= data.classes:
        raise ConfigError(f"labels lie in {low}..{high}, outside 0..{data.classes - 1}")
    return images


def _read(data: Data, train: bool) -> Images:
    if data.source == "digits":
        return _digits(train)
    if data.source == "folder":
        return _folder(Path(data.root), "train" if train else "test", data)
    if data.source == "imagenette":
        return _imagenette(data, train)
    dataset = _torchvision(data, train=train)
    pixels = torch.as_tensor(dataset.data)
    pixels = pixels.permute(0, 3, 1, 2).contiguous() if pixels.ndim == 4 else pixels.unsqueeze(1)
    return Images(pixels, torch.as_tensor(dataset.targets))


def _digits(train: bool) -> Images:
    """Scikit-learn's 1,797 handwritten digits, 8x8 with 17 grey levels; a fixed stratified 20 % are the test images."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    whole = Images(pixels, torch.from_numpy(bunch.target.astype(np.int64)), scale=16)
    train_index, test_index = stratified_split(whole.labels, 0.2)
    return _subset(whole, train_index if train else test_index)


def _torchvision(data: Data, **which: Any) -> Any:
    from torchvision import datasets  # takes five seconds to import, and digits do without

    classes = {
        "mnist": datasets.MNIST,
        "fashion": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "imagenette": datasets.Imagenette,
    }
    dataset_class = classes[data.source]
    try:
        return dataset_class(data.root, download=False, **which)
    except (RuntimeError, OSError):
        pass
    if not Path(data.root).absolute().parent.exists():  # a slip: nobody wants a tree of folders made for it
        raise ConfigError(f"data.root: there is no folder that '{data.root}' could be made in")
    try:
        return dataset_class(data.root, download=True, **which)
    except (RuntimeError, OSError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(
            f"it is not under '{data.root}' and could not be downloaded ({why}): connect to the "
            f"network, or set data.root to a folder that holds torchvision's {dataset_class.__name__}"
        ) from None


def _imagenette(data: Data, train: bool) -> Images:
    """Imagenette's 160 px version; the middle square of each image, whose shorter side is 160."""
    dataset = _torchvision(data, split="train" if train else "val", size="160px")
    return _decode([(Path(file), label) for file, label in dataset._samples], data, crop=True)


def _folder(root: Path, part: str, data: Data) -> Images:
    """Class folders of image files, all of the size that data.image says; the same classes in train and test."""
    found = {p: [path.name for path in visible(root / p) if path.is_dir()] for p in ("train", "test")}
    if len(found[part]) != data.classes:
        raise ConfigError(f"{root / part} holds {len(found[part])} class folders, not {data.classes}")
    if odd := sorted(set(found["train"]) ^ set(found["test"])):
        raise ConfigError(f"class folder '{odd[0]}' is in only one of {root}/train and {root}/test")
    files = [(path, i) for i, label in enumerate(found[part]) for path in visible(root / part / label)]
    if folders := [path for path, _ in files if path.is_dir()]:
        raise ConfigError(f"{folders[0]} is a folder within a class: images must lie beside it")
    if files and (empty := sorted(set(range(data.classes)) - {i for _, i in files})):
        raise ConfigError(f"class folder {root / part / found[part][empty[0]]} holds no images")
    return _decode(files, data)


def _decode(files: list[tuple[Path, int]], data: Data, crop: bool = False) -> Images:
    from PIL import Image, ImageOps

    channels, height, width = data.image
    # They come class by class; shuffled, so that the first so many of them are a fair sample.
    files = [files[i] for i in np.random.default_rng(SPLIT_SEED).permutation(len(files))]
    pixels = np.empty((len(files), height, width, channels), dtype=np.uint8)
    for i, (path, _) in enumerate(files):
        try:
            with Image.open(path) as file:
                if file.mode in ("F", "I") or file.mode.startswith("I;"):
                    raise ConfigError(f"{path} is not of 8 bits a channel (mode {file.mode})")
                image = file.convert("RGB" if channels == 3 else "L")
        except (OSError, SyntaxError) as error:  # so Pillow calls a broken PNG
            raise ConfigError(f"{path} cannot be read as an image: {error}") from None
        image = ImageOps.fit(image, (width, height)) if crop else image
        if image.size != (width, height):
            raise ConfigError(f"{path} is {image.width}x{image.height}, but data.image says {width}x{height}")
        pixels[i] = np.asarray(image).reshape(height, width, channels)
    labels = torch.tensor([label for _, label in files])
    return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels)


def count_images(run: Run) -> tuple[int, int]:
    """Training and test images of a run's dataset; those of a folder are counted. Raises ConfigError."""
    if run.data.source in PUBLIC:
        return PUBLIC[run.data.source]
    train, test = (sum(_in_each_class(Path(run.data.root, part).absolute())) for part in ("train", "test"))
    if not train or not test:
        raise ConfigError(
            f"{run.dataset}: there are no images under {run.data.root}/train and {run.data.root}/test to count"
        )
    return train, test


def rarest_share(run: Run) -> float:
    """The rarest class's share of a dataset's training images; those of public ones are about equally many."""
    if run.data.source != "folder":
        return 1 / run.data.classes
    found = _in_each_class(Path(run.data.root, "train").absolute())
    return min(found) / max(1, sum(found))


@cache
def _in_each_class(folder: Path) -> list[int]:
    """Images in each class folder, counted once a process."""
    return [len(visible(path)) for path in visible(folder) if path.is_dir()]
