"""What computes: the GPU or the processor, its memory, and its name for the records."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from pathlib import Path

import torch

from sat_core.errors import ConfigError
from sat_core.study import Run

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
DRIVER = Path("/dev/nvidiactl")
"""There where NVIDIA's driver is."""


def take_device(run: Run) -> torch.device:
    """Make this process ready to compute for ``run``: the first GPU that it may see, else the run's CPU threads.

    Raises ConfigError where the process was given a GPU by name that torch cannot use, rather than be slow for days.
    """
    torch.set_num_threads(run.resources.threads)
    keep_freed_memory()
    if not run.resources.gpus:
        return torch.device("cpu")
    if torch.cuda.is_available():
        torch.backends.cudnn.deterministic = True
        return torch.device("cuda")
    if os.environ.get("CUDA_VISIBLE_DEVICES") and DRIVER.exists():
        raise ConfigError(
            f"torch {torch.__version__} cannot use the GPU that this job was given: its driver may be too old for CUDA "
            f"{torch.version.cuda} (nvidia-smi shows both); to go on without a GPU, set resources: {{gpus: 0}}"
        )
    return torch.device("cpu")


def keep_freed_memory() -> None:
    """Have the C library keep what tensors free for the next ones: a call costs the CPU less than fresh pages do."""
    with contextlib.suppress(OSError, AttributeError):  # one other than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)


def device_name(device: torch.device) -> str:
    """For the records: the GPU's name and torch's CUDA, or the CPU with the threads in use."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"CPU, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held so far, in MB (10^6 bytes): resident, and on the GPU in tensors."""
    main = {"main": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}  # Linux counts in KiB
    return main | {"gpu": torch.cuda.max_memory_allocated(device) / 1e6} if device.type == "cuda" else main
