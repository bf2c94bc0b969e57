"""`data`: the images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field

from sat_core.fields import Count, Frozen, Number, Positive


def visible(folder: Path) -> list[Path]:
    """What is in a folder, if there is one; not what desktops and notebooks hide there."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


class Data(Frozen):
    """Where a dataset comes from and what its images look like."""

    source: Literal["digits", "mnist", "fashion", "cifar10", "cifar100", "imagenette", "folder"]
    root: Annotated[str, AfterValidator(os.path.expanduser)] = Field(
        "data", description="folder of the files; downloaded to if they are not there"
    )
    image: tuple[Literal[1, 3], Count, Count] = Field(description="channels, height, width")
    classes: Annotated[
        int, Field(ge=4, strict=True, description="AutoAttack needs four or more; of a folder: found if not given")
    ]
    train_images: Count | None = Field(
        None, description="train and validate on a stratified sample of so many training images, the same for every run"
    )
    mean: list[Annotated[Number, Field(ge=0, le=1)]] = Field(
        [0.0], description="per channel, of images in [0, 1]; subtracted inside the model"
    )
    std: list[Positive] = Field([1.0], description="per channel, likewise; divided by inside the model")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _find_classes(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.keys() - cls.model_fields.keys():
            return data  # to be told of the unknown key
        if data.get("source") == "folder" and "classes" not in data:
            train = Path(str(data.get("root", "data")), "train").expanduser()
            found = [path.name for path in visible(train) if path.is_dir()]
            if len(found) < 4:
                wanted = "a folder for each of four or more classes"
                raise ValueError(f"{train} must hold {wanted}, it holds {found}; or say data.classes")
            return {**data, "classes": len(found)}
        return data

    @property
    def network(self) -> dict[str, Any]:
        """What a network must know of its images, as keywords of ``models.build``."""
        return {"image": self.image, "classes": self.classes, "mean": self.mean, "std": self.std}
