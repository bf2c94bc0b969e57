"""What computes: the GPU or the processor, its memory, and its name for the records."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import re
import resource
import tempfile
from pathlib import Path
from typing import Literal, TypeVar

import filelock
import torch
import torch.nn.functional as F

from sat_core.errors import ConfigError
from sat_core.study import Run

log = logging.getLogger(__name__)
Precision = TypeVar("Precision", bound=str)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
HELD: list[filelock.BaseFileLock] = []
"""The GPU that this process has taken; freed when it ends, whatever ends it."""
PLANS = 2000
"""So many ways of computing a layer are kept by each thread that calls cuDNN, each 200 kB or so: every size of a batch
has its own, and batches that shrink have many. Torch keeps five times as many."""
DRIVER = Path("/dev/nvidiactl")
"""There where NVIDIA's driver is."""


def take_device(run: Run) -> torch.device:
    """Make this process ready to compute for ``run``: a GPU that it may see, else the run's CPU threads.

    Raises ConfigError where the process was given a GPU by name that torch cannot use, rather than be slow for days.
    """
    torch.set_num_threads(run.resources.threads)
    keep_freed_memory()
    if not run.resources.gpus:
        return torch.device("cpu")
    if torch.cuda.is_available():
        torch.backends.cudnn.deterministic = True
        os.environ.setdefault("TORCH_CUDNN_V8_API_LRU_CACHE_LIMIT", str(PLANS))
        if not HELD:  # a process stays where it is
            try_gpu(free_gpu(torch.cuda.device_count()))
        return torch.device("cuda")
    if DRIVER.exists():
        old = f"its driver may be too old for CUDA {torch.version.cuda} (nvidia-smi shows both)"
        why = old if torch.version.cuda else "this torch is built for processors alone"
        if os.environ.get("CUDA_VISIBLE_DEVICES"):
            raise ConfigError(
                f"torch {torch.__version__} cannot use the GPU that this job was given: {why}; to go on without a GPU, "
                "set resources: {gpus: 0}"
            )
        log.warning("torch %s sees no GPU, though there is a driver for one: %s", torch.__version__, why)
    return torch.device("cpu")


def shares_gpu() -> bool:
    """Whether other processes, too, hold memory of the GPU in use, if there is one.

    1 GB beside what torch holds is taken for this process's own: CUDA's context, and what cuDNN and cuBLAS have.
    """
    if not torch.cuda.is_available():
        return False
    free, total = torch.cuda.mem_get_info()
    return total - free > torch.cuda.memory_reserved() + 1e9


def gpu_name() -> str:
    """The GPU in use and its memory, for a sentence about either."""
    if not torch.cuda.is_available():
        return "the GPU"
    has = torch.cuda.get_device_properties()
    return f"{has.name} with {has.total_memory / 1e9:.0f} GB"


def free_memory() -> None:
    """Give back what nothing holds any more: CUDA graphs hold themselves in a circle, and with it their memory."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def try_gpu(number: int) -> None:
    """From now on use the GPU of this number. Raises ConfigError unless torch has kernels for it, and they run."""
    name, capability = torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)
    if torch.version.cuda and not has_kernels(capability, built := torch.cuda.get_arch_list()):
        raise ConfigError(
            f"torch {torch.__version__} has no kernels for this job's GPU, {name} (sm_{capability[0]}{capability[1]}), "
            f"only for {', '.join(built)}: docs/cluster.md says how to install one that has; to go on without a GPU, "
            "set resources: {gpus: 0}"
        )
    try:
        torch.cuda.set_device(number)
        x = torch.ones(2, 3, 8, 8, device="cuda", requires_grad=True)
        y = F.conv2d(x, torch.ones(4, 3, 3, 3, device="cuda")).flatten(1)  # cuDNN's, then cuBLAS's
        (y @ y.mT).sum().backward()
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise ConfigError(
            f"this job's GPU, {name}, fails at the first kernels: {str(error).splitlines()[0]} (to go on without a GPU,"
            " set resources: {gpus: 0})"
        ) from None


def has_kernels(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether a GPU of this compute capability runs code built for these: ``sm_80`` or, compiled when run, PTX.

    Code for 8.0 runs on 8.x from 8.0 on; PTX of 8.0 (``compute_80``) on all from 8.0 on; ``sm_90a`` on 9.0 alone.
    """
    for kind, major, minor, exactly in re.findall(r"(sm|compute)_(\d+)(\d)(a?)", " ".join(built)):
        made_for = int(major), int(minor)
        fits = made_for == capability if exactly else made_for <= capability
        if fits and (kind == "compute" or made_for[0] == capability[0]):
            return True
    return False


def is_ampere(device: torch.device) -> bool:
    """Whether it is a GPU with TF32 and bfloat16, which came with NVIDIA's compute capability 8.0."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def precision_on(device: torch.device, asked: Precision) -> Precision | Literal["float32"]:
    """What the device computes in if it is asked to."""
    if asked == "tf32" and not is_ampere(device):
        log.warning("tf32 is not to be had on %s, which computes in float32", device_name(device))
        return "float32"
    return asked


def best_precision(device: torch.device) -> Literal["float32", "bfloat16"]:
    """bfloat16 where arithmetic units have it: GPUs of capability 8.0 and newer, processors with AVX512-BF16."""
    on_processor = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if on_processor or is_ampere(device) else "float32"


def free_gpu(count: int) -> int:
    """One of ``count`` GPUs: that which the fewest processes of this machine have taken so. It is held until the end.

    GPUs go by what CUDA_VISIBLE_DEVICES calls them, so that processes that see different ones do not mix them up.
    """
    if count <= 1:
        return 0
    names = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")
    place = Path(tempfile.gettempdir(), f"sat-core-gpus-{os.getuid()}")
    place.mkdir(exist_ok=True)
    for turn in range(10_000):
        for i, name in enumerate(names[:count]):
            lock = filelock.FileLock(place / f"{name}.{turn}")
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(blocking=False)
                HELD.append(lock)
                return i
    return 0


def keep_freed_memory() -> None:
    """Have the C library keep what tensors free for the next ones: a call costs the CPU less than fresh pages do."""
    with contextlib.suppress(OSError, AttributeError):  # one other than glibc
        libc = ctypes.CDLL(None)
        for most in (2**30, 2**25):  # older ones refuse more than the second, and the other setting alone costs time
            if libc.mallopt(M_MMAP_THRESHOLD, most):
                libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
                return


def device_name(device: torch.device) -> str:
    """For the records: the GPU's name and torch's CUDA, or the CPU with the threads in use."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"CPU, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held so far, in MB (10^6 bytes): resident, and of the GPU by torch."""
    main = {"main": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}  # Linux counts in KiB
    return main | {"gpu": torch.cuda.max_memory_reserved(device) / 1e6} if device.type == "cuda" else main
