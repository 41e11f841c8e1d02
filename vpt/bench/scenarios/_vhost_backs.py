# SPDX-License-Identifier: BSD-2-Clause
"""The vhost-user back-ends that are compared: each with one thread that moves packets, on a CPU of its
own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from vpt.bench.scenarios._ports import mac_of, tasks, thread_name, while_it_lives
from vpt.bench.scenarios._testpmd import Testpmd
from vpt.daemon.daemon import Settings as DaemonSettings
from vpt.daemon.embedded import EmbeddedDaemon
from vpt.daemon.models import PolicyConfig, PortAdd, SwitchAdd
from vpt.daemon.runtime import private

__all__ = ["MTU", "BackEnd", "Moves", "TestpmdBack", "Vptd", "cpu_ns", "testpmd_backs"]

MTU = 1518


class Moves(Protocol):
    """process: its id. moving: threads of it that move packets."""

    process: int
    moving: set[int]


def cpu_ns(who: Moves) -> int:
    """CPU time of the threads that move packets."""
    files = (Path(f"/proc/{who.process}/task/{tid}/schedstat") for tid in who.moving)
    with while_it_lives("a thread that moves packets"):
        return sum(int(file.read_text(encoding="ascii").split()[0]) for file in files)


class BackEnd(Moves, Protocol):
    """sockets: where the front-end connects. ahead: threads that command those that move packets."""

    sockets: list[str]
    ahead: set[int]

    def start(self) -> None:
        """Take packets."""

    def stop(self) -> dict[str, float]:
        """Take no more; what only the back-end can tell."""

    def taken(self) -> int:
        """Packets consumed between start and stop."""

    def tell(self) -> str:
        """What it has counted in all, for an error's message."""


def _workers(threads: Iterable[int]) -> set[int]:
    """Those that are an engine's."""
    return {tid for tid in threads if thread_name(tid).startswith("vpt-worker")}


class Vptd:
    """The whole daemon in a thread of its own, ports p0, p1, ... as it makes them by default."""

    def __init__(
        self,
        stack: ExitStack,
        cpu: int,
        devices: int,
        *,
        sink: bool = False,
        policy: PolicyConfig | None = None,
    ) -> None:
        paths = private(stack.enter_context(TemporaryDirectory(prefix="vpt-bench-")))
        before = tasks().keys()
        self.daemon = stack.enter_context(EmbeddedDaemon(DaemonSettings(paths, cpus=(cpu,), keeper=False)))
        self.moving = _workers(tasks().keys() - before)
        self.ahead: set[int] = set()
        self.process = os.getpid()
        self.daemon.call(lambda d: d.switches.add(SwitchAdd(name="s")))
        how = policy or PolicyConfig()
        self._names = [f"p{i}" for i in range(devices)]
        ports = [
            PortAdd(name=name, switch="s", kind="vhost-user", mtu=MTU, policy=how) for name in self._names
        ]
        if sink:
            ports.append(PortAdd(name="sink", switch="s", kind="null", touch=True, mac=mac_of(1)))
        views = [self.daemon.add_port(port) for port in ports]
        self.sockets = [str(view.socket) for view in views[:devices]]

    def start(self) -> None:
        self._before = self.daemon.counters("p0")

    def stop(self) -> dict[str, float]:
        self._after = self.daemon.counters("p0")
        return {"batch": self.taken() / max(1, self._after["tx_batches"] - self._before["tx_batches"])}

    def taken(self) -> int:
        return self._after["tx_packets"] - self._before["tx_packets"]

    def tell(self) -> str:
        counts = {name: self.daemon.counters(name) for name in self._names}
        return "; ".join(
            f"{name}: " + ", ".join(f"{what} {n}" for what, n in each.items() if n)
            for name, each in counts.items()
        )


class TestpmdBack:
    """testpmd with net_vhost, forwarding in one of its modes."""

    def __init__(self, pmd: Testpmd, sockets: list[str], mode: str) -> None:
        self.sockets = sockets
        self.process = pmd.pid
        self.moving, self.ahead = pmd.threads()
        self._pmd, self._mode, self._taken = pmd, mode, 0

    def start(self) -> None:
        self._pmd.ask(f"set fwd {self._mode}")
        self._pmd.ask("start")

    def stop(self) -> dict[str, float]:
        self._taken, _ = self._pmd.stop()
        return {}

    def taken(self) -> int:
        return self._taken

    def tell(self) -> str:
        return self._pmd.tell()


def testpmd_backs(
    stack: ExitStack, cpu: int, devices: int, modes: Mapping[str, str]
) -> dict[str, TestpmdBack]:
    """One process, under the names of the modes that are compared."""
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="vpt-bench-")))
    sockets = [str(folder / f"{i}.sock") for i in range(devices)]
    vdevs = [f"net_vhost{i},iface={path},queues=1" for i, path in enumerate(sockets)]
    pmd = stack.enter_context(Testpmd("dpdk-testpmd as back-end", cpu, vdevs))
    return {name: TestpmdBack(pmd, sockets, mode) for name, mode in modes.items()}
