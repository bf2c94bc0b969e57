"""What may go wrong in ways that a user can mend, and how it is said."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class ConfigError(ValueError):
    """Something a user wrote is wrong; the message is one sentence: what, where, and what is allowed."""


class Hopeless(ConfigError):
    """It would go wrong again: nothing but other settings, other code or another machine helps."""


class Interrupted(BaseException):
    """A signal asked the process to stop; everything needed to go on has been saved.

    Like KeyboardInterrupt no Exception: it may come anywhere, and nobody is to take it for a fault of his own.
    """


def lacks_memory(error: BaseException, surely: bool = False) -> bool:
    """Whether an error says that there was too little memory; ``surely``: in words that mean nothing else.

    cuDNN and cuBLAS have words of their own where theirs is what there was no room for; cuDNN, too, where no way that
    it knows of computing a layer fits. A GPU that is out of order may say the same.
    """
    if error.__context__ is not None and lacks_memory(error.__context__, surely):  # of a capture that this one ended
        return True
    words = "out ?of ?memory|can't allocate memory|alloc_failed"
    if not surely:
        words += "|cudnn_status_internal_error|unable to find an engine|cublas_status_not_initialized"
    return bool(re.search(words, f"{type(error).__name__} {error}".lower()))


def in_one_line(error: BaseException) -> str:
    """The kind of an error and what it says, of code that is not ours."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def unknown(kind: str, name: object, allowed: Iterable[str]) -> str:
    """The sentence for a name that is not among ``allowed``, with the nearest right one first."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"unknown {kind} '{name}'{hint} (allowed: {', '.join(allowed) or 'none'})"
