# SPDX-License-Identifier: BSD-2-Clause
"""A tap port against the real kernel, in a network namespace of the test's own."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.apps import AppPeer, ether, mac
from support.netns import enter_new_netns, set_up
from support.waiting import until
from vpt.daemon.transports.tap import _FEATURES, _open
from vpt.dataplane import Engine, Kind, Port, StatsReader, Switch

APP, KERNEL = mac(1), mac(2)
ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
NEEDS_CSUM, TCPV4 = 1, 1


class Wire:
    """An app port and a tap port on one switch, and a packet socket on the tap's kernel side."""

    def __init__(self, engine: Engine) -> None:
        # Only the thread that calls it moves to the namespace, which goes when the descriptors do.
        with ThreadPoolExecutor(1) as pool:
            fd = pool.submit(self._enter).result()
        self.switch: Switch = engine.add_switch("sw0")
        self.tap: Port = self.switch.add_port("tap", Kind.TAP, lossless=True)
        self.tap.tap_attach(fd, int(_FEATURES))
        os.close(fd)
        self.app = AppPeer(self.switch, "app", mac=APP)
        self.app.connect()
        self._stats = StatsReader(engine.stats_fd)

    def _enter(self) -> int:
        enter_new_netns()
        fd = _open("vpt0")
        # The kernel's own IPv6 multicasts would be flooded to a full ring, and a flood waits for nobody.
        with contextlib.suppress(FileNotFoundError):
            Path("/proc/sys/net/ipv6/conf/vpt0/disable_ipv6").write_text("1")
        self.kernel = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        set_up(self.kernel, "vpt0")
        self.kernel.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.kernel.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.kernel.bind(("vpt0", ETH_P_ALL))
        self.kernel.settimeout(10)
        return fd

    def kernel_sends(self, frame: bytes, vnet: bytes = bytes(10)) -> None:
        """Out of the kernel's interface, into the switch."""
        self.kernel.send(vnet + frame)

    def kernel_gets(self) -> bytes:
        """The next frame from the application; the kernel's own talk is skipped."""
        while (got := self.kernel.recv(1 << 17)[10:])[6:12] != APP:
            pass
        return got

    def app_gets(self) -> bytes:
        while (got := self.app.recv())[6:12] != KERNEL:
            pass
        return got

    def counter(self, port: Port, name: str) -> int:
        return self._stats.read().port(port.id)[name]

    def close(self) -> None:
        self._stats.close()
        self.app.close()
        self.kernel.close()


@pytest.fixture
def wire(no_leaks: None) -> Iterator[Wire]:
    with Engine() as engine:
        try:
            wire = Wire(engine)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                pytest.skip(f"needs CAP_NET_ADMIN and CAP_NET_RAW: {error}")
            raise
        yield wire
        wire.close()


def test_frames_pass_both_ways(wire: Wire) -> None:
    for n in range(100):
        wire.app.app.send(0, ether(KERNEL, APP, b"%d" % n, size=60 + n))
        assert wire.kernel_gets() == ether(KERNEL, APP, b"%d" % n, size=60 + n)
        wire.kernel_sends(ether(APP, KERNEL, b"%d" % n, size=60 + n))
        assert wire.app_gets() == ether(APP, KERNEL, b"%d" % n, size=60 + n)


def test_what_the_kernel_left_to_the_device_is_done_for_an_application_without_offloads(wire: Wire) -> None:
    """The kernel hands a tap that allows it one long TCP segment; it must arrive as three."""
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 2540, 7, 0, 64, 6, 0, bytes(4), bytes(4))
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 1000, 0, 0x50, 0x10, 1, 6 + 2520, 0)
    frame = APP + KERNEL + b"\x08\0" + ip + tcp + bytes(i % 251 for i in range(2500))
    wire.kernel_sends(frame, struct.pack("=BBHHHH", NEEDS_CSUM, TCPV4, 54, 1000, 34, 16))
    got = [wire.app_gets() for _ in range(3)]
    assert [len(g) - 54 for g in got] == [1000, 1000, 500]
    assert b"".join(g[54:] for g in got) == frame[54:]
    assert wire.counter(wire.app.port, "rx_sw_gso") == 1


def test_a_lossless_tap_keeps_what_finds_no_room(wire: Wire) -> None:
    """The application does not read, and its ring is full: what was read from the kernel must wait."""
    for n in range(400):
        wire.kernel_sends(ether(APP, KERNEL, n.to_bytes(2, "big")))
    until(lambda: wire.counter(wire.tap, "tx_blocked") > 0, "the tap to be blocked")
    assert [int.from_bytes(wire.app_gets()[14:16], "big") for _ in range(400)] == list(range(400))
    assert wire.counter(wire.app.port, "rx_drop_full") == 0
