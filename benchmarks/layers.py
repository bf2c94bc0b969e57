"""What each choice behind a training step is worth: input gradients and whole passes, one change after the other.

The last two rows of networks are the 8x8 one at two batch sizes: what a call costs however few samples are left.
Below them, from processes that take turns: Madry's step where freed memory is kept and where glibc gives it back.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from steps import SHAPES, floor_parts, make_trainers, measure, plain, processes

from sat_core import models
from sat_core.runs import device

NETWORKS = (
    ("cnn", (1, 28, 28), 128),
    ("preactresnet18", (3, 32, 32), 32),
    ("cnn", (1, 8, 8), 64),
    ("cnn", (1, 8, 8), 4),
)


def main() -> None:
    """Print the table: medians in ms, and as a ratio to the plain network of the same rounds."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = []
    for name, image, batch in NETWORKS:
        torch.manual_seed(0)
        torch.compiler.reset()
        channels = image[0]
        folded = models.build(name, image, 10, mean=[0.5] * channels, std=[0.25] * channels)
        half = copy.deepcopy(folded)
        half.in_bfloat16 = True
        compiled = copy.deepcopy(half)
        models.compile_in_place(compiled, batch)
        variants = {
            "float32, NCHW": plain(folded),
            "+ channels_last": plain(folded).to(memory_format=torch.channels_last),
            "+ folded first layer": folded,
            "+ bfloat16": half,
            "+ compiled": compiled,
        }
        x, y = torch.rand(batch, *image), torch.randint(10, (batch,))
        actions = {(v, part): act for v, m in variants.items() for part, act in floor_parts(m, x, y, 1).items()}
        times = pd.DataFrame(measure(actions, rounds=9))
        for variant in variants:
            row = {"network": f"{name} {image[1]}x{image[2]}, {batch} images", "": variant}
            for part in ("input gradients", "forward-backward"):
                own, first = times[variant, part], times["float32, NCHW", part]
                row |= {f"{part} (ms)": 1e3 * own.median(), f"{part} (ratio)": (own / first).median()}
            rows.append(row)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".2f"))
    print(pd.DataFrame(map(memory, ("cnn", "preactresnet18"))).to_markdown(index=False, floatfmt=".3f"))


def memory(name: str) -> dict[str, object]:
    """The row of one network: seconds of Madry's step in bfloat16 with fresh pages and with freed memory kept."""
    with processes({"given back": (madry, (name, False)), "kept": (madry, (name, True))}) as actions:
        times = pd.DataFrame(measure(actions, rounds=9))
    ratio = (times["kept"] / times["given back"]).median()
    return {"Madry's step": name, **{f"{title} (s)": times[title].median() for title in times}, "ratio": ratio}


def madry(name: str, kept: bool) -> Callable[[], object]:
    """A step of Madry's, in the process that this is called in; on noise, 128 images or, of colour, 32."""
    if not kept:
        device.keep_freed_memory = lambda: None
    batch = 128 if SHAPES[name][0] == 1 else 32
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        trainer = make_trainers(Path(folder), name, "bfloat16", batch, 10)["madry"]
        group = next(trainer.train_images.batches(torch.arange(len(trainer.train_images)), batch))
    return lambda: trainer.step(*group)


if __name__ == "__main__":
    main()
