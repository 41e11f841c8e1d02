# SPDX-License-Identifier: BSD-2-Clause
"""The demo, step by step: image, accelerator, daemon, guests, flows, counters."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vpt.daemon.daemon import Settings
from vpt.daemon.embedded import EmbeddedDaemon
from vpt.daemon.models import PortAdd, SwitchAdd
from vpt.daemon.runtime import private
from vpt.dataplane import vec_count
from vpt.demo._report import FlowReport, PortReport, Report, port_report
from vpt.errors import TimeoutExpired
from vpt.guest import READY_MARK, Guest, Image, build_image, cache_dir, ping, tcp_file, udp_stream
from vpt.qemu import Accel, Ivshmem, Nic, Qemu, VhostUser, find_qemu, probe_accel

__all__ = ["Options", "run"]

Progress = Callable[[str], None]

_SWITCH = "demo"
_LINK_UP_S = 10.0


@dataclass(frozen=True, slots=True)
class Options:
    """accel None: found out. udp_pps: packets per second, 0 as fast as the sender can."""

    accel: Literal["kvm", "tcg"] | None = None
    pings: int = 200
    tcp_mib: int = 32
    udp_packets: int = 20_000
    udp_size: int = 1000
    udp_pps: int = 5_000


@dataclass(frozen=True, slots=True)
class _Plan:
    """One guest and its port."""

    name: str
    kind: Literal["vhost-user", "passthrough"]
    driver: str
    mac: str
    address: str

    def nic(self, socket: Path) -> Nic:
        if self.kind == "vhost-user":
            return VhostUser(socket, self.mac)
        return Ivshmem(socket, vec_count(1))


_PLANS = (
    _Plan("vm1", "vhost-user", "virtio_net", "52:54:00:76:70:01", "10.118.0.1"),
    _Plan("vm2", "passthrough", "vpt_net", "52:54:00:76:70:02", "10.118.0.2"),
)


class _Side:
    """A booted guest, and the counters of its port."""

    def __init__(self, plan: _Plan, guest: Guest, daemon: EmbeddedDaemon) -> None:
        self.plan = plan
        self.guest = guest
        self._daemon = daemon

    def counters(self) -> Counter[str]:
        return self._daemon.counters(self.plan.name)

    def configure(self) -> None:
        """Find the interface by its address, give it one of ours, check who drives it."""
        plan, guest = self.plan, self.guest
        find = f"grep -l {plan.mac} /sys/class/net/*/address"
        guest.wait_until(find, _LINK_UP_S, f"an interface with address {plan.mac}")
        interface = guest.run(find).output.split("/")[4]
        guest.run(f"ip addr add {plan.address}/24 dev {interface} && ip link set {interface} up")
        guest.wait_until(
            f"grep -q 1 /sys/class/net/{interface}/carrier", _LINK_UP_S, f"{interface} to have a link"
        )
        path = guest.run(f"readlink -f /sys/class/net/{interface}/device/driver").output.strip()
        if (driver := path.rsplit("/", 1)[-1]) != plan.driver:
            raise TimeoutExpired(f"guest {plan.name}: {interface} is driven by {driver}, not {plan.driver}")

    def report(self) -> PortReport:
        return port_report(self.plan.name, self.plan.kind, self.plan.driver, self.counters())


class _Flows:
    """Runs one flow at a time and takes the difference of the ports' counters around it."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self._options = options
        self._progress = progress

    def ping(self, a: _Side, b: _Side) -> FlowReport:
        self._progress(f"ping {a.plan.name} -> {b.plan.name}, {self._options.pings} times")
        before = _sum(a, b)
        result = ping(a.guest, b.plan.address, count=self._options.pings)
        return _flow(
            a,
            b,
            "ping",
            before,
            sent=result.sent,
            received=result.received,
            lost=result.lost,
            size=result.received * 56,
            seconds=result.seconds,
            rtt_us_median=result.rtt_us_median,
            rtt_us_p99=result.rtt_us_p99,
        )

    def tcp(self, a: _Side, b: _Side) -> FlowReport:
        self._progress(f"TCP {a.plan.name} -> {b.plan.name}, a file of {self._options.tcp_mib} MiB")
        before, sent, received = _sum(a, b), a.counters(), b.counters()
        result = tcp_file(a.guest, b.guest, b.plan.address, mib=self._options.tcp_mib)
        sent, received = a.counters() - sent, b.counters() - received
        return _flow(
            a,
            b,
            "tcp",
            before,
            sent=sent["tx_packets"],
            received=received["rx_packets"],
            lost=sent["tx_packets"] - received["rx_packets"],
            size=result.bytes,
            seconds=result.seconds,
            sha256_ok=result.sha256_ok,
        )

    def udp(self, a: _Side, b: _Side) -> FlowReport:
        o = self._options
        self._progress(f"UDP {a.plan.name} -> {b.plan.name}, {o.udp_packets} packets of {o.udp_size} bytes")
        before = _sum(a, b)
        result = udp_stream(
            a.guest, b.guest, b.plan.address, count=o.udp_packets, size=o.udp_size, pps=o.udp_pps
        )
        return _flow(
            a,
            b,
            "udp",
            before,
            sent=result.sent,
            received=result.received,
            lost=result.lost,
            size=result.bytes,
            seconds=result.seconds,
        )


def _sum(a: _Side, b: _Side) -> Counter[str]:
    return a.counters() + b.counters()


def _flow(
    a: _Side,
    b: _Side,
    what: Literal["ping", "tcp", "udp"],
    before: Counter[str],
    *,
    sent: int,
    received: int,
    lost: int,
    size: int,
    seconds: float,
    **more: float | bool | None,
) -> FlowReport:
    used = _sum(a, b) - before
    packets = used["tx_packets"]
    interrupts = used["rx_interrupts"] + used["tx_interrupts"]
    return FlowReport(
        source=a.plan.name,
        target=b.plan.name,
        what=what,
        sent=sent,
        received=received,
        lost=lost,
        bytes=size,
        seconds=round(seconds, 6),
        kicks=used["kicks"],
        kicks_per_packet=round(used["kicks"] / packets, 4) if packets else 0.0,
        interrupts=interrupts,
        interrupts_per_packet=round(interrupts / packets, 4) if packets else 0.0,
        **more,  # type: ignore[arg-type]
    )


def _choose_accel(options: Options, image: Image, qemu: Qemu, progress: Progress) -> Accel:
    if options.accel is not None:
        return Accel(options.accel, "as asked for")
    progress("probing the accelerator by booting a guest")
    return probe_accel(image.kernel.vmlinuz, image.initrd, qemu, marker=READY_MARK, cache=cache_dir())


def _plug(daemon: EmbeddedDaemon, plan: _Plan) -> Nic:
    """Add the guest's port; what QEMU is to be told about it."""
    request = PortAdd(name=plan.name, switch=_SWITCH, kind=plan.kind, mac=plan.mac)
    view = daemon.call(lambda d: d.ports.add(request))
    assert view.socket is not None, "both kinds have one"
    return plan.nic(Path(view.socket))


def run(options: Options, progress: Progress = lambda _: None) -> Report:
    """Run the demo; raises VptError where a step fails. Leaves nothing behind but the cached image."""
    qemu = find_qemu()
    image = build_image(progress)
    accel = _choose_accel(options, image, qemu, progress)
    progress(f"accelerator: {accel.name} ({accel.why})")
    with contextlib.ExitStack() as undo:
        # Short, because a socket's path may have 107 characters.
        folder = Path(tempfile.mkdtemp(prefix="vpt-demo-"))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        progress("starting vptd with one switch and two ports")
        settings = Settings(private(folder), keep=False)
        daemon = undo.enter_context(EmbeddedDaemon(settings))
        daemon.call(lambda d: d.switches.add(SwitchAdd(name=_SWITCH)))
        guests = []
        for plan in _PLANS:
            nic = _plug(daemon, plan)
            guest = Guest(image, qemu, name=plan.name, accel=accel.name, nics=[nic])
            guests.append(undo.enter_context(guest))
            progress(f"booting {plan.name}: {plan.driver} on a {plan.kind} port")
        sides = [_Side(plan, guest, daemon) for plan, guest in zip(_PLANS, guests, strict=True)]
        for side in sides:
            side.guest.wait_ready()
            side.configure()
        a, b = sides
        flows = _Flows(options, progress)
        measured = tuple(
            measure(*ends) for measure in (flows.ping, flows.tcp, flows.udp) for ends in ((a, b), (b, a))
        )
        return Report(
            accel=accel.name,
            accel_why=accel.why,
            qemu=str(qemu),
            kernel=image.kernel.release,
            ports=tuple(side.report() for side in sides),
            flows=measured,
        )
