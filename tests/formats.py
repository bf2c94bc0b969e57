"""Public datasets in their exact formats on disk, made of noise."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR = {
    False: ("cifar-10-batches-py", "labels", 10, "batches.meta", "label_names"),
    True: ("cifar-100-python", "fine_labels", 100, "meta", "fine_label_names"),
}
UNCHECKED = """
import sys

if "data" in sys.orig_argv:  # in which noise is read; the checksums of the published files are not its own
    from torchvision import datasets

    for cls in (datasets.CIFAR10, datasets.CIFAR100):
        for files in (cls.train_list, cls.test_list):
            files[:] = [[name, None] for name, _ in files]
        cls.meta = cls.meta | {"md5": None}
"""
"""A ``sitecustomize.py``."""


def write_mnist(root: Path, train: int, test: int) -> None:
    """MNIST as IDX files."""
    rng, folder = np.random.default_rng(0), root / "MNIST/raw"
    folder.mkdir(parents=True)
    for name, count in {"train": train, "t10k": test}.items():
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in {"images-idx3": pixels, "labels-idx1": labels}.items():
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())


def write_cifar(root: Path, hundred: bool, train: int, test: int) -> Path:
    """CIFAR as pickled batches, five of them for training CIFAR-10; returns their folder."""
    rng = np.random.default_rng(0)
    name, key, classes, meta, names = CIFAR[hundred]
    folder = root / name
    folder.mkdir(parents=True)
    parts = {"train": train, "test": test}
    if not hundred:
        parts = {f"data_batch_{i}": train // 5 for i in range(1, 6)} | {"test_batch": test}
    for part, count in parts.items():
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {"data": pixels, key: [i % classes for i in range(count)]}
        (folder / part).write_bytes(pickle.dumps(content))
    (folder / meta).write_bytes(pickle.dumps({names: [str(i) for i in range(classes)]}))
    return folder


def write_imagenette(root: Path, count: int) -> None:
    """Imagenette's 160 px version, unpacked: so many images a class and part, 200 x 160, the i-th of redness 10 i."""
    from torchvision.datasets import Imagenette

    for part in ("train", "val"):
        for wnid in Imagenette._WNID_TO_CLASS:
            folder = root / "imagenette2-160" / part / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (200, 160), (10 * i, 0, 255)).save(folder / f"{i:02}.JPEG")
    with tarfile.open(root / "imagenette2-160.tgz", "w:gz"):
        pass
