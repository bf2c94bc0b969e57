"""Images as tensors on a device: uint8 as the files hold them, float32 in [0, 1] in batches."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Images:
    """Images and labels kept as the files hold them.

    ``pixels``: uint8 (N, C, H, W) in [0, scale]; ``labels``: int64 (N,); ``scale``: the pixel value that means 1.
    Batches come out on ``device``; the pixels are there too unless they do not fit.
    """

    pixels: Tensor
    labels: Tensor
    scale: int = 255
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images float32 (n, C, H, W) in [0, 1] and labels int64 (n,)."""
        x, y = self.pixels[index], self.labels[index]
        return x.to(self.device).to(torch.float32).div_(self.scale), y.to(self.device)

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Indices, images and labels, ``size`` at a time, in the order given (CPU int64)."""
        if self.pixels.device.type == self.device.type:  # not the devices themselves: "cuda" is not "cuda:0"
            for index in parts_of(order.to(self.device), size):  # once, as a GPU would be waited for every time
                yield index, *self.batch(index)
        else:
            yield from self.streamed(parts_of(order, size))

    def streamed(self, parts: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of these indices, gathered by processes of their own while the device computes."""
        loader: DataLoader[tuple[Tensor, Tensor, Tensor]] = DataLoader(
            _Gather(self),
            batch_size=None,
            sampler=parts,
            num_workers=2,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_ignore_sigterm,
            generator=torch.Generator(),  # else it draws from the global one, and resuming would differ
        )
        for index, pixels, labels in loader:
            x = pixels.to(self.device, non_blocking=True).to(torch.float32).div_(self.scale)
            yield index.to(self.device, non_blocking=True), x, labels.to(self.device, non_blocking=True)

    def to(self, device: torch.device) -> Images:
        """The same images for work on ``device``: moved there if they take less than half of its free memory."""
        size = self.pixels.nbytes
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        if size > free / 2:
            log.info("%d images (%.1f GB) do not fit on %s: they stream from disk", len(self), size / 1e9, device)
            return Images(self.pixels, self.labels, self.scale, device)
        log.info("%d images (%.3f GB) are kept on %s", len(self), size / 1e9, device)
        return Images(self.pixels.to(device), self.labels.to(device), self.scale, device)


def parts_of(order: Tensor, size: int) -> list[Tensor]:
    """``order`` in parts of ``size``; an empty tensor would split into one empty part."""
    return [part for part in order.split(size) if len(part)]


def _ignore_sigterm(_: int) -> None:
    """It reaches every process of a job; this one must live on until the training has saved, which then ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Gather(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """What the DataLoader's workers do: pick the pixels and labels of a batch of indices."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return index, self.images.pixels[index], self.images.labels[index]
