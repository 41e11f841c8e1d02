# SPDX-License-Identifier: BSD-2-Clause
"""What a port's front-end has negotiated, remembered beyond the life of this process.

A guest's driver can't give features back while it runs. A front-end that connects again to a back-end that
offers fewer can only try for ever; so the next daemon, which may be another version, must offer at least the
same to the same process, or say plainly that it can't. A front-end that was started anew is free.

The file lies in the runtime folder: it need not outlive the machine, whose guests don't either.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Memory", "Negotiated", "process_of"]

_SCHEMA = "vpt.negotiated/v1"
_MAX_SIZE = 4096


@dataclass(frozen=True, slots=True)
class Negotiated:
    """Who negotiated (process_of() of the front-end), and which virtio features.

    pages_refused: it has refused a page for its kicks.
    """

    process: str
    features: int = 0
    pages_refused: bool = False


def process_of(pid: int) -> str | None:
    """What no later process is called: its number and when it began. None if that is hidden from us."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{pid} {after_name[19]}"


class Memory:
    """One port's file. One that can't be read is as good as none; one that can't be written is an OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self) -> Negotiated | None:
        """What was remembered last."""
        try:
            with self._path.open() as file:
                content = json.loads(file.read(_MAX_SIZE))
            if content.pop("schema") != _SCHEMA:
                return None
            found = Negotiated(**content)
            return found if isinstance(found.features, int) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def remember(self, negotiated: Negotiated) -> None:
        """In the place of what there was; whole or not at all."""
        beside = self._path.with_suffix(".new")
        content = {key: value for key, value in asdict(negotiated).items() if value is not False}
        beside.write_text(json.dumps({"schema": _SCHEMA, **content}))
        os.replace(beside, self._path)
