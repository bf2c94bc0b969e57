"""`resources`: what a job asks of the machine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sat_core.fields import Count, Frozen, Positive


class Resources(Frozen):
    """What a run's jobs ask of the machine; all but `threads` may change between attempts.

    `threads` is part of the result, because sums depend on it in the last bit. Memory and time bind on a cluster only.
    """

    threads: Annotated[int, Field(ge=1, le=1024, strict=True)] = 1
    mem_mb: Annotated[int, Field(ge=500, strict=True, description="main memory; a second attempt gets twice this")] = (
        4000
    )
    gpus: Annotated[int, Field(ge=0, le=1, strict=True)] = Field(
        1, description="1: a GPU if there is one; 0: the processor alone"
    )
    runs_per_gpu: Literal[1, 2, 4, 8] = Field(1, description="so many runs, trained and judged, share one allocation")
    train_minutes: Count = Field(60, description="time limit; a second attempt gets twice this")
    evaluate_minutes: Count = Field(60, description="of AutoAttack, of a shard of it, of curvature, of a landscape")
    checkpoint_minutes: Positive = Field(
        5.0, description="a checkpoint every so many minutes of training, besides those at its end and at signals"
    )
