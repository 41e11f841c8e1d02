# SPDX-License-Identifier: BSD-2-Clause
"""Micro guests on ports of a vptd in this process, and what each side has counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from vpt.bench.micro import Device, Found, Kick, Machine, MicroGuest, choose_accel
from vpt.bench.scenario import Settings
from vpt.bench.scenarios._ports import mac_of, tasks, thread_name, worker_cpu
from vpt.daemon.daemon import Settings as DaemonSettings
from vpt.daemon.embedded import EmbeddedDaemon
from vpt.daemon.models import PortAdd, PortSet, SwitchAdd
from vpt.daemon.runtime import private
from vpt.dataplane import Feature, StatsReader, vec_count
from vpt.errors import MissingError
from vpt.exits.model import Tier
from vpt.exits.tier import kvm_tier, read_host_evidence
from vpt.qemu import Accel, Ivshmem, VhostUser

__all__ = ["ATTACHMENTS", "POLICIES", "Attachment", "Plugged", "Rig", "accelerator", "rig", "tier_of"]

PolicyName = Literal["notify", "sleep", "poll", "adaptive"]
POLICIES: tuple[PolicyName, ...] = ("notify", "sleep", "poll", "adaptive")

_ALL_FEATURES = (1 << 64) - 1
_SWITCH = "bench"


@dataclass(frozen=True, slots=True)
class Attachment:
    """How a guest is attached, which features it accepts, and when it kicks."""

    kind: Literal["passthrough", "vhost-user"]
    kick: Kick = Kick.WANTED
    features: int = _ALL_FEATURES


ATTACHMENTS = {
    "passthrough": Attachment("passthrough"),
    "virtio-net, event index": Attachment("vhost-user"),
    "virtio-net, kicks each": Attachment("vhost-user", Kick.EVERY, _ALL_FEATURES & ~int(Feature.EVENT_IDX)),
}


@dataclass(frozen=True, slots=True)
class Plugged:
    """A booted guest whose device is open. qmp: where its QEMU listens."""

    name: str
    guest: MicroGuest
    found: Found
    mac: bytes
    qmp: Path


class Rig:
    """A vptd with one worker and one switch, and guests on it. Made by rig()."""

    def __init__(
        self, stack: ExitStack, daemon: EmbeddedDaemon, folder: Path, accel: Accel, cpu: int
    ) -> None:
        self._stack = stack
        self._daemon = daemon
        self._folder = folder
        self._accel = accel
        self._guest_cpu = cpu
        self._stats = stack.enter_context(StatsReader(private(folder).stats))
        self._plugged = 0

    def null_port(self) -> None:
        """A sink that reads each byte."""
        port = PortAdd(name="sink", switch=_SWITCH, kind="null", touch=True)
        self._daemon.add_port(port)

    def guest(self, name: str, attachment: Attachment) -> Plugged:
        """Boot a guest on a port of its own. Lossless: what it sends waits in its ring for room."""
        self._plugged += 1
        mac = mac_of(self._plugged)
        port = PortAdd(name=name, switch=_SWITCH, kind=attachment.kind, mac=mac, lossless=True)
        view = self._daemon.add_port(port)
        socket, qmp = Path(str(view.socket)), self._folder / f"{name}.qmp"
        if attachment.kind == "passthrough":
            nic: Ivshmem | VhostUser = Ivshmem(socket, vectors=vec_count(1))
        else:
            nic = VhostUser(socket, mac)
        machine = Machine(accel=self._accel.name, nic=nic, cpu=self._guest_cpu, qmp=qmp)
        guest = self._stack.enter_context(MicroGuest(machine))
        found = guest.open(Device.ANY, features=attachment.features)
        return Plugged(name, guest, found, bytes.fromhex(mac.replace(":", "")), qmp)

    def set_policy(self, policy: PolicyName, ports: Sequence[str]) -> None:
        """The host's policy toward these ports, with the times that vptd has by default."""
        for port in ports:
            self._change(PortSet(name=port, policy=policy))

    def set_link(self, port: str, up: bool) -> None:
        """A port whose link is down gets nothing, floods included."""
        self._change(PortSet(name=port, link="up" if up else "down"))

    @contextmanager
    def linked(self, port: str) -> Iterator[None]:
        """Its link is up meanwhile, and down afterwards, however that ends."""
        self.set_link(port, True)
        try:
            yield
        finally:
            self.set_link(port, False)

    def _change(self, request: PortSet) -> None:
        self._daemon.call(lambda d: d.ports.change(request))

    def port_counters(self, port: str) -> Counter[str]:
        """What the data plane counted on a port."""
        return self._daemon.counters(port)

    def worker_counters(self) -> Counter[str]:
        """What the worker counted of itself."""
        return Counter(self._stats.read().workers[0].counters)

    def worker_ns(self) -> int:
        """CPU time of the worker's thread."""
        return sum(ns for tid, ns in tasks().items() if tid in self.workers())

    def workers(self) -> set[int]:
        """Thread ids."""
        return {tid for tid in tasks() if thread_name(tid).startswith("vpt-worker")}


@contextmanager
def rig(settings: Settings, accel: Accel) -> Iterator[Rig]:
    """A switch without ports; the worker on the last CPU that may be used, guests on the first."""
    cpu = worker_cpu(settings.cpus)
    first = (settings.cpus or sorted(os.sched_getaffinity(0)))[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="vpt-bench-")))
        daemon = stack.enter_context(
            EmbeddedDaemon(DaemonSettings(private(folder), cpus=(cpu,), keeper=False))
        )
        daemon.call(lambda d: d.switches.add(SwitchAdd(name=_SWITCH)))
        yield Rig(stack, daemon, folder, accel, first)


def accelerator(settings: Settings) -> Accel:
    """What the guests run on. MissingError: KVM was asked for and can't run them here."""
    if settings.accel == "tcg":
        return Accel("tcg", "asked for")
    found = choose_accel()
    if settings.accel == "kvm" and found.name != "kvm":
        raise MissingError(
            f"this scenario was asked to run under KVM: {found.why}",
            hint="--accel tcg runs it without exits, to see that all works; vpt doctor says what KVM lacks",
        )
    return found


def tier_of(accel: Accel) -> tuple[Tier, str]:
    """The tier of what is counted under an accelerator, and why."""
    return kvm_tier(read_host_evidence()) if accel.name == "kvm" else (Tier.TCG, accel.why)
