"""What each choice behind a training step is worth: input gradients and whole passes, one change after the other.

The last two rows of networks are the 8x8 one at two batch sizes: what a call costs however few samples are left.
"""

from __future__ import annotations

import copy

import pandas as pd
import torch
from steps import floor_parts, measure, plain

from sat_core import models
from sat_core.config import Data

NETWORKS = (
    ("cnn", (1, 28, 28), 128),
    ("preactresnet18", (3, 32, 32), 32),
    ("cnn", (1, 8, 8), 64),
    ("cnn", (1, 8, 8), 4),
)


def main() -> None:
    """Print the table: medians in ms, and as a ratio to the plain network of the same rounds."""
    rows = []
    for name, image, batch in NETWORKS:
        torch.manual_seed(0)
        channels = image[0]
        data = Data(source="folder", image=image, classes=10, mean=[0.5] * channels, std=[0.25] * channels)
        folded = models.build(name, data)
        half = copy.deepcopy(folded)
        half.bfloat16 = True
        variants = {
            "float32, NCHW": plain(folded),
            "+ channels_last": plain(folded).to(memory_format=torch.channels_last),
            "+ folded first layer": folded,
            "+ bfloat16": half,
        }
        x, y = torch.rand(batch, *image), torch.randint(10, (batch,))
        actions = {(v, part): act for v, m in variants.items() for part, act in floor_parts(m, x, y).items()}
        times = pd.DataFrame(measure(actions, rounds=9))
        for variant in variants:
            row = {"network": f"{name} {image[1]}x{image[2]}, {batch} images", "": variant}
            for part in ("input gradient", "forward-backward"):
                own, first = times[variant, part], times["float32, NCHW", part]
                row |= {f"{part} (ms)": 1e3 * own.median(), f"{part} (ratio)": (own / first).median()}
            rows.append(row)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".2f"))


if __name__ == "__main__":
    main()
