# SPDX-License-Identifier: BSD-2-Clause
"""What vptd must remember to come back after a crash: switches and ports as they were asked for.

One JSON file, replaced as a whole: written beside, synced, renamed, folder synced. So it is always either the
old or the new one. It holds configuration only; what the guest and the rings say lives in shared memory.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vpt.daemon.models import PortConfig, SwitchConfig, explain
from vpt.errors import UsageError

__all__ = ["State", "load", "store"]

_SCHEMA = "vpt.journal/v1"
# More than all switches and ports together can need.
_MAX_SIZE = 64 << 20


class State(BaseModel):
    """The journal's content. Order is the order of creation, and a port's switch comes before it."""

    model_config = ConfigDict(extra="forbid")

    switches: list[SwitchConfig] = []
    ports: list[PortConfig] = []
    owners: dict[str, str] = {}


def load(path: Path) -> State:
    """The state recorded at `path`; empty if there is none.

    UsageError (code "journal") if it can't be trusted.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from None
    if len(raw) > _MAX_SIZE:
        raise _damaged(path, "it is larger than any journal can be")
    return _parse(path, raw)


def _parse(path: Path, raw: bytes) -> State:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not JSON: {error}") from None
    schema = content.pop("schema", None) if isinstance(content, dict) else None
    if schema != _SCHEMA:
        raise _damaged(path, f"schema {schema!r}, this vptd knows {_SCHEMA!r}")
    try:
        state = State.model_validate(content)
    except ValidationError as error:
        raise _damaged(path, explain(error)) from None
    _check_references(path, state)
    return state


def _check_references(path: Path, state: State) -> None:
    names: set[str] = set()
    switches = {switch.name for switch in state.switches}
    for name in (*(switch.name for switch in state.switches), *(port.name for port in state.ports)):
        if name in names:
            raise _damaged(path, f"{name!r} appears twice")
        names.add(name)
    for port in state.ports:
        if port.switch not in switches:
            raise _damaged(path, f"port {port.name!r} is on a switch that is not there: {port.switch!r}")


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(
        f"the journal {path} can't be used: {why}",
        hint=f"look at it; to start without the ports it names: mv {path} {path}.bad",
        code="journal",
    )


def store(path: Path, state: State) -> None:
    """Replace the journal at `path`. When this returns, the new one survives a power cut."""
    content = {"schema": _SCHEMA, **state.model_dump(mode="json")}
    beside = path.with_suffix(".new")
    with beside.open("w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
