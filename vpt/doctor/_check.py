# SPDX-License-Identifier: BSD-2-Clause
"""One line of the doctor's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vpt.errors import VptError

__all__ = ["Check", "guarded"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line. fix: a command, or advice, that helps; empty where there is nothing to do."""

    name: str
    verdict: Literal["ok", "note", "missing"]
    what: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def guarded(name: str, examination: Callable[[], Check | Iterator[Check]]) -> Iterator[Check]:
    """What an examination finds. One that fails is found to be missing, and says what would mend it."""
    try:
        found = examination()
        yield from [found] if isinstance(found, Check) else found
    except VptError as error:
        yield Check(name, "missing", error.message, error.hint or "")
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        yield Check(name, "missing", f"{type(error).__name__}: {error}")
