# SPDX-License-Identifier: BSD-2-Clause
"""Engine, Switch and Port: what the daemon owns.

A parent that is closed ends its children in C. A child asks its parents before each call, so that a handle
that outlived them raises instead of reaching freed memory.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from vpt.dataplane._capture import BpfInsn, Capture, program
from vpt.dataplane._native import check, fd_array, ffi, lib, mac_bytes, mac_text, name_bytes, new, text
from vpt.dataplane._owned import Owned
from vpt.dataplane._pure import region_opts, vec_count
from vpt.dataplane._types import (
    Event,
    EventType,
    InflightRecord,
    Kind,
    MacEntry,
    MemRegion,
    Policy,
    PortState,
    Reason,
    RegionOptions,
    Rules,
    Vring,
)
from vpt.errors import ConflictError, UsageError

__all__ = ["Engine", "Port", "Switch"]

_VRING_BUSY = {errno.EBUSY: "stop the ring first"}


class Engine(Owned):
    """Workers, events and counters.

    workers:  threads that move packets, 1..MAX_WORKERS
    cpus:     CPU of each worker, -1 or None for any
    stats_fd: file to keep the counters in (truncated to size); -1: an anonymous memfd

    Closing it stops and frees all switches, ports and workers.
    """

    _WHAT = "engine"
    _FREE = lib.vpt_engine_close

    def __init__(self, workers: int = 1, cpus: Sequence[int] | None = None, stats_fd: int = -1) -> None:
        cpus = list(cpus or [])
        if len(cpus) > workers:
            raise UsageError(f"{len(cpus)} CPUs given for {workers} workers")
        cpus += [-1] * (lib.VPT_MAX_WORKERS - len(cpus))
        opts = new("struct vpt_engine_opts *", {"workers": workers, "cpus": cpus, "stats_fd": stats_fd})
        out = ffi.new("vpt_engine **")
        check(
            lib.vpt_engine_open(opts, out),
            f"start {workers} workers",
            {errno.EINVAL: f"1 to {lib.VPT_MAX_WORKERS} workers, each on a CPU that this process may use"},
        )
        self._own(out[0])

    @property
    def stats_fd(self) -> int:
        """The file that the counters live in. The engine's own: not to be closed."""
        return int(lib.vpt_engine_stats_fd(self._handle()))

    def hold(self, hold: bool) -> None:
        """Take nothing from any port, or go on; what is in the rings waits meanwhile."""
        check(lib.vpt_engine_hold(self._handle(), hold), "hold the workers")

    @property
    def event_fd(self) -> int:
        """Readable when an event is waiting. The engine's own: not to be closed."""
        return int(lib.vpt_engine_event_fd(self._handle()))

    def next_event(self) -> Event | None:
        """The oldest event that is waiting, if any."""
        ev = ffi.new("struct vpt_event *")
        if not check(lib.vpt_engine_next_event(self._handle(), ev), "next event"):
            return None
        return Event(EventType(ev.type), ev.port_id, Reason(ev.reason), ev.queue, bool(ev.rx), ev.detail)

    def events(self) -> Iterator[Event]:
        """All events that are waiting."""
        while (event := self.next_event()) is not None:
            yield event

    def add_switch(self, name: str, mac_entries: int = 0, mac_age_s: int = 0) -> Switch:
        """A learning switch. 0 means the default: 4096 addresses, forgotten after 300 s."""
        opts = new(
            "struct vpt_switch_opts *",
            {"name": name_bytes(name, "switch"), "mac_entries": mac_entries, "mac_age_s": mac_age_s},
        )
        out = ffi.new("vpt_switch **")
        check(
            lib.vpt_switch_add(self._handle(), opts, out),
            f"add switch {name}",
            {errno.EINVAL: "mac_entries is a power of two, 64..1048576"},
        )
        return Switch(self, name, out[0])

    def capture(
        self,
        *,
        ring_bytes: int = 1 << 22,
        snaplen: int = 1 << 18,
        directions: int = 0,
        filter_: Sequence[BpfInsn] = (),
    ) -> Capture:
        """Copies of packets for an observer, of no port yet.

        ring_bytes: memory for each worker, a power of two
        snaplen:    bytes kept of a packet
        directions: VPT_CAPTURE_IN, VPT_CAPTURE_OUT (vpt.h); 0: both
        filter_:    a program of classic BPF; none lets all pass
        """
        opts = new(
            "struct vpt_capture_opts *",
            {"ring_bytes": ring_bytes, "snaplen": snaplen, "directions": directions},
        )
        out = ffi.new("vpt_capture **")
        check(
            lib.vpt_capture_add(self._handle(), opts, program(filter_), len(filter_), out),
            "capture packets",
            {errno.EINVAL: "256 KiB to 1 GiB, a power of two; a snaplen of 14 at least; a valid filter"},
        )
        return Capture(self, out[0])


class Switch:
    """A set of ports and a MAC table. Made by Engine.add_switch()."""

    def __init__(self, engine: Engine, name: str, handle: Any) -> None:
        self.engine = engine
        self.name = name
        self._h: Any = handle

    @property
    def deleted(self) -> bool:
        return self._h is None or self.engine.closed

    def _handle(self) -> Any:
        if self.deleted:
            raise ConflictError(f"switch {self.name} is gone")
        return self._h

    def delete(self) -> None:
        """Delete the switch and its ports. Harmless the second time, or after the engine's end."""
        if not self.deleted:
            lib.vpt_switch_del(self._h)
        self._h = None

    def add_port(
        self,
        name: str,
        kind: Kind,
        pairs: int = 1,
        policy: Policy | None = None,
        worker: int = -1,
        lossless: bool = False,
        touch: bool = False,
        max_macs: int = 0,
        mtu: int = 1500,
        mac: str | bytes | None = None,
    ) -> Port:
        """A port without a peer yet.

        pairs:    queue pairs (rings 1..32, vhost-user 1..128, tap and null 1)
        policy:   None: adaptive, 50 us
        worker:   index of the one that serves it, -1: each queue goes to the one with the fewest
        lossless: no room at the destination leaves packets in this port's ring, instead of dropping them
        touch:    null ports: read each byte
        max_macs: addresses it may have in the MAC table, 0: 1024
        mac:      its peer's address, which nobody else may send from; None: unknown
        """
        flags = (lib.VPT_PORT_LOSSLESS if lossless else 0) | (lib.VPT_PORT_TOUCH if touch else 0)
        opts = new(
            "struct vpt_port_opts *",
            {
                "name": name_bytes(name, "port"),
                "kind": kind,
                "pairs": pairs,
                "worker": worker,
                "flags": flags,
                "max_macs": max_macs,
                "mtu": mtu,
                "mac": list(mac_bytes(mac)),
                "policy": asdict(policy) if policy else {},
            },
        )
        out = ffi.new("vpt_port **")
        check(lib.vpt_port_add(self._handle(), opts, out), f"add {Kind(kind).label} port {name}")
        return Port(self, name, Kind(kind), pairs, out[0])

    def set_mac_age(self, mac_age_s: int) -> None:
        """Forget addresses not heard for so long, from now on."""
        check(lib.vpt_switch_set_mac_age(self._handle(), mac_age_s), f"ageing of {self.name}")

    def mac_count(self) -> int:
        """How many live entries the MAC table has."""
        return check(lib.vpt_switch_macs(self._handle(), ffi.NULL, 0), f"MAC table of {self.name}")

    def macs(self) -> list[MacEntry]:
        """The live entries of the MAC table."""
        room = 256
        while True:
            table = ffi.new("struct vpt_mac_entry[]", room)
            count = check(lib.vpt_switch_macs(self._handle(), table, room), f"MAC table of {self.name}")
            if count <= room:
                break
            room = count + 64  # some may be learned meanwhile
        return [MacEntry(mac_text(bytes(e.mac)), e.vlan, e.port_id, e.age_s) for e in table[0:count]]


class Port:
    """A port, made by Switch.add_port(). Which of the attach and vhost calls apply depends on its kind."""

    def __init__(self, switch: Switch, name: str, kind: Kind, pairs: int, handle: Any) -> None:
        self.switch = switch
        self.name = name
        self.kind = kind
        self.pairs = pairs
        self._h: Any = handle
        self.id = int(lib.vpt_port_id(handle))

    def __repr__(self) -> str:
        return f"<Port {self.id} {self.name} {self.kind.label}{' gone' if self.deleted else ''}>"

    @property
    def deleted(self) -> bool:
        return self._h is None or self.switch.deleted

    def _handle(self) -> Any:
        if self.deleted:
            raise ConflictError(f"port {self.name} is gone")
        return self._h

    def _check(self, rc: int, what: str, hints: dict[int, str] | None = None) -> int:
        return check(rc, f"port {self.name}: {what}", hints)

    def delete(self) -> None:
        """Delete the port. Harmless the second time, or after the switch's end."""
        if not self.deleted:
            lib.vpt_port_del(self._h)
        self._h = None

    def set_policy(self, policy: Policy) -> None:
        """Change the notification policy; takes effect at the worker's next loop."""
        c_policy = new("struct vpt_policy *", asdict(policy))
        hints = {errno.EINVAL: "adaptive: spin_us 0..1000000; sleep: sleep_us 1..1000000"}
        self._check(lib.vpt_port_set_policy(self._handle(), c_policy), f"policy {policy.kind.label}", hints)

    def set_mtu(self, mtu: int) -> None:
        """The longest packet that the peer may send, and gets. Not for ports with a region: it says so."""
        self._check(lib.vpt_port_set_mtu(self._handle(), mtu), f"mtu {mtu}")

    def set_link(self, up: bool) -> None:
        """Administrative link state; down: nothing is delivered, nothing taken."""
        self._check(lib.vpt_port_set_link(self._handle(), up), f"link {'up' if up else 'down'}")

    def set_rules(self, rules: Rules) -> None:
        """What the peer may send and gets, from now on: all of it, not only what is new."""
        if rules.access and rules.trunk is not None:
            raise UsageError(f"port {self.name}: either access or trunk")
        mode = lib.VPT_VLAN_ALL if rules.trunk is None else lib.VPT_VLAN_TRUNK
        vlans = [0] * 64
        for vid in rules.trunk or ():
            vlans[vid // 64] |= 1 << vid % 64
        opts = new(
            "struct vpt_rules *",
            {
                "flags": (lib.VPT_RULE_ISOLATED if rules.isolated else 0)
                | (lib.VPT_RULE_ANTI_SPOOFING if rules.anti_spoofing else 0),
                "vlan_mode": lib.VPT_VLAN_ACCESS if rules.access else mode,
                "native": rules.access or rules.native,
                "broadcast": rules.broadcast,
                "multicast": rules.multicast,
                "unknown": rules.unknown,
                "vlans": vlans,
                "tx": asdict(rules.tx),
                "rx": asdict(rules.rx),
            },
        )
        hints = {errno.EINVAL: "VLANs are 1..4094; anti-spoofing needs an address; see vpt.h for the limits"}
        self._check(lib.vpt_port_set_rules(self._handle(), opts), "rules", hints)

    def inject(self, frame: bytes) -> None:
        """Send a frame in the place of the peer: its source is learned here.

        ENETDOWN: the link is down. EPERM: the port's rules forbid it, which is counted.
        """
        self._check(lib.vpt_port_inject(self._handle(), frame, len(frame)), f"send {len(frame)} bytes")

    def learn(self, heard: Sequence[tuple[str | bytes, int]]) -> int:
        """As if these addresses had been heard here, each in its VLAN (0: without tag); returns how many.

        Left out is what this port may not have, is another's, or has no room.
        """
        table = new("struct vpt_heard[]", [(mac_bytes(mac), vlan) for mac, vlan in heard])
        return self._check(lib.vpt_port_learn(self._handle(), table, len(heard)), f"learn {len(heard)}")

    def forget(self) -> None:
        """Forget the addresses that were heard here; not those that the port was given."""
        lib.vpt_port_forget(self._handle())

    def macs(self, most: int) -> list[tuple[str, int]]:
        """Addresses that were heard here, `most` at most, each with its VLAN (0: without tag)."""
        table = ffi.new("struct vpt_mac_entry[]", most)
        count = self._check(lib.vpt_port_macs(self._handle(), table, most), "MAC table")
        return [(mac_text(bytes(e.mac)), e.vlan) for e in table[0 : min(count, most)]]

    def state(self) -> PortState:
        """A moment's view of port and peer."""
        out = ffi.new("struct vpt_port_state *")
        self._check(lib.vpt_port_state(self._handle(), out), "state")
        return PortState(
            up=bool(out.up),
            reason=Reason(out.reason),
            features=out.features,
            workers=tuple(i for i in range(lib.VPT_MAX_WORKERS) if out.workers >> i & 1),
            peer_status=out.peer_status,
            driver=text(out.driver),
        )

    # ---- passthrough and app ports ----

    def ring_attach(
        self, region_fd: int, opts: RegionOptions, kick_fds: Sequence[int], intr_fds: Sequence[int]
    ) -> None:
        """Serve a region, made by region_create() with the same options; vec_count(pairs) eventfds each way.

        A region whose peer is at work already is resumed where its indices say.
        """
        count = vec_count(opts.pairs)
        self._check(
            lib.vpt_port_ring_attach(
                self._handle(),
                region_fd,
                region_opts(opts),
                fd_array(kick_fds, count, f"port {self.name}: kicks"),
                fd_array(intr_fds, count, f"port {self.name}: interrupts"),
            ),
            "attach a region",
            {
                errno.EBADF: "the region must be a sealed memfd of region_size() bytes, the others eventfds",
                errno.EBUSY: "the port has a region already; delete it and add it again",
            },
        )

    def ring_status(self) -> None:
        """Act on the peer's status word; to be called on each STATUS event."""
        self._check(lib.vpt_port_ring_status(self._handle()), "peer status")

    # ---- vhost-user ports; the caller has validated what it passes on ----

    def vhost_set_features(self, features: int) -> None:
        """What the front-end accepted. EINVAL: bits not offered, or a dependency broken; EBUSY: rings run."""
        if not 0 <= features < 1 << 64:
            raise UsageError(f"port {self.name}: features {features:#x} do not fit 64 bits")
        self._check(lib.vpt_vhost_set_features(self._handle(), features), f"features {features:#x}")

    def vhost_mem_set(self, regions: Sequence[MemRegion]) -> None:
        """Replace the memory table, all or nothing. EFAULT: a running ring would lose its memory."""
        table = new("struct vpt_mem_region[]", [asdict(r) for r in regions])
        self._check(
            lib.vpt_vhost_mem_set(self._handle(), table, len(regions)),
            f"memory table of {len(regions)} regions",
        )

    def vhost_mem_add(self, region: MemRegion) -> None:
        """Add one region to the memory table."""
        c_region = new("struct vpt_mem_region *", asdict(region))
        self._check(lib.vpt_vhost_mem_add(self._handle(), c_region), f"add memory at {region.gpa:#x}")

    def vhost_mem_del(self, region: MemRegion) -> None:
        """Take one region from the memory table. ENOENT: no such region; EFAULT: a running ring needs it."""
        c_region = new("struct vpt_mem_region *", asdict(region))
        self._check(lib.vpt_vhost_mem_del(self._handle(), c_region), f"remove memory at {region.gpa:#x}")

    def vring_start(self, index: int, vring: Vring) -> None:
        """Start a ring; 2*i is the receive queue of pair i, 2*i+1 its transmit queue."""
        ring = new("struct vpt_vring *", asdict(vring))
        self._check(
            lib.vpt_vhost_vring_start(self._handle(), index, ring),
            f"start ring {index}",
            {**_VRING_BUSY, errno.EFAULT: "the ring must lie in the memory table"},
        )

    def vring_stop(self, index: int) -> int | None:
        """Stop a ring; the next available index, from which to go on. None: it was not running."""
        base = ffi.new("uint32_t *")
        rc = lib.vpt_vhost_vring_stop(self._handle(), index, base)
        if rc == -errno.ENOENT:
            return None
        self._check(rc, f"stop ring {index}")
        return int(base[0])

    def vring_enable(self, index: int, enable: bool) -> None:
        """vhost-user's SET_VRING_ENABLE."""
        what = f"{'enable' if enable else 'disable'} ring {index}"
        self._check(lib.vpt_vhost_vring_enable(self._handle(), index, enable), what)

    def vring_set_kick(self, index: int, fd: int) -> None:
        """Replace the kick eventfd of a running ring; -1: the host polls."""
        self._check(lib.vpt_vhost_vring_set_kick(self._handle(), index, fd), f"kick of ring {index}")

    def vring_set_call(self, index: int, fd: int) -> None:
        """Replace the call eventfd of a running ring; -1: nobody listens."""
        self._check(lib.vpt_vhost_vring_set_call(self._handle(), index, fd), f"call of ring {index}")

    def vring_unheard(self, index: int, unheard: bool) -> None:
        """A ring's kicks may end in a page of the guest's: look without waiting for them."""
        self._check(lib.vpt_vhost_vring_unheard(self._handle(), index, unheard), f"kicks of ring {index}")

    def vring_kick(self, index: int) -> None:
        """See to it that the port is served, and return when what was in its rings has been taken."""
        self._check(lib.vpt_vhost_vring_kick(self._handle(), index), f"kick ring {index}")

    def vhost_log_set(self, fd: int, offset: int, size: int) -> None:
        """The dirty log, in use while VHOST_F_LOG_ALL is on. ERANGE: it ends before memory does."""
        self._check(lib.vpt_vhost_log_set(self._handle(), fd, offset, size), f"log of {size} bytes")

    def vhost_log_event(self, fd: int) -> None:
        """An eventfd to signal when something was logged; -1: none."""
        self._check(lib.vpt_vhost_log_event(self._handle(), fd), "event of the log")

    def vring_log(self, index: int, on: bool, used_gpa: int) -> None:
        """Whether writes to a ring's used part are logged, and at which address."""
        self._check(lib.vpt_vhost_vring_log(self._handle(), index, on, used_gpa), f"log of ring {index}")

    def vhost_inflight_set(self, record: InflightRecord | None) -> None:
        """The record of what is in flight, for rings that are started from now on. EBUSY: rings run."""
        c_record = new("struct vpt_inflight *", asdict(record)) if record else ffi.NULL
        self._check(lib.vpt_vhost_inflight_set(self._handle(), c_record), "record of what is in flight")

    def vhost_reset(self) -> None:
        """Stop all rings; forget features, memory, log and breakdown: as before the first message."""
        self._check(lib.vpt_vhost_reset(self._handle()), "reset")

    # ---- tap ports ----

    def tap_attach(self, fd: int, features: int = 0) -> None:
        """Serve a tap: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, 12-byte header, offloads set by the caller."""
        self._check(
            lib.vpt_port_tap_attach(self._handle(), fd, features),
            "attach a tap",
            {errno.EBUSY: "the port has a tap already; delete it and add it again"},
        )
