"""A network that was not trained here: where its code and its weights are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pydantic
from pydantic import Field

from sat_core import plugins
from sat_core.errors import ConfigError, unknown
from sat_core.fields import Frozen, Name, Number, Positive

BASE = "external"
"""What such a row has in the place of a defense; overrides may name it."""
ROBUSTBENCH = "robustbench"
SUFFIXES = (".safetensors", ".pt", ".pth")


class External(Frozen):
    """A network that was not trained here, judged as it is. Files are named as seen from the study's file."""

    model: str = Field(description="FILE.py:FUNCTION, the name of a network, or robustbench:NAME")
    weights: str = Field(description="a .safetensors, .pt or .pth file of tensors")
    mean: list[Number] | None = Field(None, description="per channel; without, the network normalises inside")
    std: list[Positive] | None = None
    prefix: str | None = Field(None, description="of the weights' names in the file; found by itself where one fits")

    @pydantic.model_validator(mode="after")
    def _is_whole(self) -> External:
        if not pydantic.TypeAdapter(Name).validator.isinstance_python(self.network):
            raise ValueError(
                f"model '{self.model}' is not FILE.py:FUNCTION, the name of a network, or robustbench:NAME"
            )
        if not self.weights.endswith(SUFFIXES):
            raise ValueError(f"weights '{self.weights}' is not a file of type {', '.join(SUFFIXES)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both, or none")
        return self

    @property
    def place(self) -> str | None:
        """The file that the network's code is in, or ``robustbench``; None for a network by name."""
        return self.model.rpartition(":")[0] or None

    @property
    def file(self) -> str | None:
        """The file that the network's code is in, if that is someone's own."""
        return None if self.place == ROBUSTBENCH else self.place

    @property
    def function(self) -> str:
        """What makes the network there."""
        return self.model.rpartition(":")[2]

    @property
    def network(self) -> str:
        """What tables call the network, and where its results stand."""
        return self.function.lower()

    def moved(self, seen: Callable[[str], str]) -> External:
        """The same, with its files named as ``seen`` names them."""
        files = {"weights": seen(self.weights)}
        if self.file is not None:
            files["model"] = f"{seen(self.file)}:{self.function}"
        return self.model_copy(update=files)

    def seen_from(self, study: Path) -> External:
        """The same, its files as seen from the working directory; raises ConfigError where one is not there."""
        moved = self.moved(partial(plugins.beside, study))
        if not Path(moved.weights).is_file():
            raise ConfigError(f"weights {moved.weights}: there is no such file")
        if moved.file is not None and self.function not in (there := plugins.names(Path(moved.file))):
            raise ConfigError(f"{moved.file}: {unknown('function', self.function, there)}")
        return moved

    def settings(self) -> dict[str, Any]:
        """What of it changes numbers, as JSON: the weights by their content, the code by the function's name."""
        return self.model_dump(mode="json") | {"model": self.function, "weights": checksum(Path(self.weights))}


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex, read once as long as it stays the same; ``missing`` where there is none."""
    if not path.is_file():
        return "missing"
    about = path.stat()
    return _checksum(path, about.st_mtime_ns, about.st_size)


@cache
def _checksum(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
