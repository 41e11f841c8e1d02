# SPDX-License-Identifier: BSD-2-Clause
"""What a vptd has: engine, switches and ports, and the journal that remembers them."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass, field

from vpt.daemon import journal
from vpt.daemon.models import PortConfig, SwitchConfig
from vpt.daemon.ports import ManagedPort
from vpt.daemon.runtime import RuntimePaths, whole_command
from vpt.dataplane import Engine, StatsReader, Switch
from vpt.errors import ConflictError, ExistsError, NotFoundError

__all__ = ["Inventory", "ManagedSwitch", "check_same"]


@dataclass(slots=True)
class ManagedSwitch:
    config: SwitchConfig
    switch: Switch
    ports: set[str] = field(default_factory=set)


class Inventory:
    """What is there, shared by those who change it.

    change:      held by whoever changes anything, so that changes are made one at a time
    names_by_id: the data plane's numbers of ports
    """

    def __init__(self, paths: RuntimePaths) -> None:
        self.paths = paths
        self.change = asyncio.Lock()
        self.switches: dict[str, ManagedSwitch] = {}
        self.ports: dict[str, ManagedPort] = {}
        self.names_by_id: dict[int, str] = {}
        self._engine: Engine | None = None
        self._stats: StatsReader | None = None

    def open(self, engine: Engine) -> None:
        self._engine = engine
        self._stats = StatsReader(engine.stats_fd)

    def close(self) -> None:
        """Stop the engine, if there is one, and forget all."""
        self.ports.clear()
        self.switches.clear()
        if self._stats is not None:
            self._stats.close()
            self._stats = None
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    @property
    def running(self) -> bool:
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    @property
    def stats(self) -> StatsReader:
        assert self._stats is not None
        return self._stats

    def typed(self, *words: str) -> str:
        """For a hint: what anybody can type to have `vpt WORDS` ask this vptd."""
        return whole_command(self.paths.runtime, shlex.join(words))

    def switch(self, name: str) -> ManagedSwitch:
        switch = self.switches.get(name)
        if switch is None:
            raise NotFoundError(
                f"no switch {name!r}",
                hint=f"add it: {self.typed('switch', 'add', name)}; see: {self.typed('switch', 'list')}",
            )
        return switch

    def port(self, name: str) -> ManagedPort:
        managed = self.ports.get(name)
        if managed is None:
            raise NotFoundError(f"no port {name!r}", hint=f"see them with: {self.typed('port', 'list')}")
        return managed

    def put_back(self, managed: ManagedPort) -> None:
        """A port that failed is there again, as it was: in name."""
        self.ports[managed.config.name] = managed
        self.switches[managed.config.switch].ports.add(managed.config.name)

    def check_name(self, name: str) -> None:
        """Switches and ports share one space of names, so that `vpt show NAME` is never ambiguous."""
        taken = "switch" if name in self.switches else "port" if name in self.ports else None
        if taken:
            raise ExistsError(
                f"there is a {taken} {name!r} already",
                hint=f"see it: {self.typed('show', name)}; --may-exist accepts one that is the same",
            )

    def owners(self) -> dict[str, str]:
        """The VMs of the ports that were made for one, by the ports' names."""
        return {name: managed.owner for name, managed in self.ports.items() if managed.owner}

    async def save(self) -> None:
        """Write the journal. ConflictError if that is not possible."""
        state = journal.State(
            switches=[managed.config for managed in self.switches.values()],
            ports=[managed.config for managed in self.ports.values()],
            owners=self.owners(),
        )
        try:
            await asyncio.to_thread(journal.store, self.paths.journal, state)
        except OSError as error:
            raise ConflictError(
                f"the journal can't be written, so nothing was changed: {error.strerror}",
                hint=f"df -h {self.paths.state}; ls -l {self.paths.journal}",
            ) from error


def check_same(existing: SwitchConfig | PortConfig, wanted: SwitchConfig | PortConfig) -> None:
    """--may-exist accepts what is there only if it is what was asked for."""
    have, want = existing.model_dump(), wanted.model_dump()
    different = [f"{key} is {have[key]!r}, not {want[key]!r}" for key in want if have[key] != want[key]]
    if different:
        raise ExistsError(
            f"{wanted.name!r} exists with other settings: {'; '.join(different)}",
            hint="delete it first, or ask for what it is",
        )
