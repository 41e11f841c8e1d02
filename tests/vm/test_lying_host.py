# SPDX-License-Identifier: BSD-2-Clause
"""A host that lies: whatever it writes into the region, the guest lives; its link goes down with one line.

No data plane here: the test itself is the host, for the real one does not tell such lies.
"""

from __future__ import annotations

import mmap
import os
import random
import selectors
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vpt.dataplane import RegionOptions, vec_cfg, vec_rx, vec_tx
from vpt.dataplane._native import ffi, lib
from vpt.guest import Guest

pytestmark = [
    pytest.mark.vm,
    pytest.mark.needs("qemu-system-x86_64", "busybox", "/boot/vmlinuz-*", "gcc", "make"),
]

SLOTS = 64
COMPLAINT = "host broke the ring protocol"


class LyingHost:
    """Mirrors the peer's status as a host must, and gives access to all that it could write."""

    def __init__(self, fds: Any) -> None:
        self.fds = fds
        self.map = mmap.mmap(fds.region, os.fstat(fds.region).st_size)
        self._raw = ffi.from_buffer(self.map)
        self.hdr = ffi.cast("struct vpt_hdr *", self._raw)
        self.ktoa = ffi.cast("struct vpt_csb_ktoa *", self._raw + self.hdr.csb_ktoa_ofs)
        self.atok = ffi.cast("struct vpt_csb_atok *", self._raw + self.hdr.csb_atok_ofs)
        self.nm_if = ffi.cast("struct vpt_nm_if *", self._raw + self.hdr.netmap_if_ofs)
        self.ring = [
            ffi.cast("struct vpt_nm_ring *", self._raw + self.hdr.netmap_if_ofs + self.nm_if.ring_ofs[i])
            for i in range(2)
        ]
        self.truth = bytes(self.map)
        self._end = os.eventfd(0)
        self._thread = threading.Thread(target=self._mirror)
        self._thread.start()

    def _mirror(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.fds.kicks[vec_cfg(1)], selectors.EVENT_READ)
            selector.register(self._end, selectors.EVENT_READ, "end")
            while not any(key.data for key, _ in selector.select()):
                os.eventfd_read(self.fds.kicks[vec_cfg(1)])
                status = self.hdr.peer_status
                if status == lib.VPT_S_DRIVER_OK and self.hdr.host_status != status:
                    self.ktoa[0].hwtail = SLOTS - 1
                    self.ktoa[1].hwtail = 0
                self.hdr.host_status = status
                self.interrupt(vec_cfg(1))

    def interrupt(self, vector: int) -> None:
        os.eventfd_write(self.fds.interrupts[vector], 1)

    def tell_the_truth(self) -> None:
        """Put back everything but the peer's half and the status."""
        status = self.hdr.host_status
        self.map[: lib.VPT_HDR_PEER_OFS] = self.truth[: lib.VPT_HDR_PEER_OFS]
        self.hdr.host_status = status
        self.map[self.hdr.csb_ktoa_ofs :] = self.truth[self.hdr.csb_ktoa_ofs :]

    def deliver(self, chunks: list[bytes], **lies: int) -> None:
        """One packet at the peer's rx head, in a slot per chunk; `lies` overwrite fields of its last slot."""
        at = self.atok[1].head
        for chunk in chunks:
            slot = self.ring[1].slot[at]
            start = self.hdr.buf_pool_ofs + slot.buf_idx * self.hdr.buf_size
            self.map[start : start + len(chunk)] = chunk
            slot.len, slot.flags = len(chunk), lib.VPT_NS_MOREFRAG
            at = (at + 1) % SLOTS
        slot.flags = 0
        for field, value in lies.items():
            setattr(slot, field, value)
        self.ktoa[1].hwtail = at
        self.interrupt(vec_rx(1, 0))

    def close(self) -> None:
        os.eventfd_write(self._end, 1)
        self._thread.join()
        os.close(self._end)
        ffi.release(self._raw)


class _Device:
    """The guest's view, and the rituals around each lie."""

    def __init__(self, guest: Guest, liar: LyingHost) -> None:
        self.guest = guest
        self.liar = liar

    def carrier(self, state: int) -> None:
        path = "/sys/class/net/eth0/carrier"
        self.guest.wait_until(f"[ $(cat {path}) = {state} ]", 10, f"a carrier of {state}")

    def up(self) -> None:
        """An honest start."""
        self.guest.run("ip link set eth0 down")
        self.liar.tell_the_truth()
        self.guest.run("dmesg -c >/dev/null; ip link set eth0 up; arp -i eth0 -s 10.0.0.2 02:00:00:00:00:02")
        self.carrier(1)

    def send(self, count: int) -> None:
        self.guest.run(f"vpt_flow send 10.0.0.2 9 {count} 64 1000", check=False)

    def log(self) -> list[str]:
        return self.guest.run("dmesg | grep vpt_net", check=False).output.splitlines()

    def stat(self, name: str) -> int:
        return int(self.guest.run("vpt_nicstat eth0").json()[name])


@pytest.fixture(scope="module")
def device(host, boot, new_fds) -> Iterator[_Device]:
    fds = new_fds(RegionOptions("liar", mac="02:00:00:00:00:01", num_slots=SLOTS))
    liar = LyingHost(fds)
    guest = boot("victim", host.ivshmem_server("liar", fds).nic)
    guest.wait_ready()
    guest.run("ip addr add 10.0.0.1/24 dev eth0; sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1")
    yield _Device(guest, liar)
    guest.stop()
    liar.close()


FRAME = bytes.fromhex("020000000001 020000000002 88b5") + bytes(46)
HDR = bytes(12)


def test_honest_delivery_arrives(device):
    """What the lies below are variations of."""
    device.up()
    before = device.stat("rx_packets")
    device.liar.deliver([HDR + FRAME])
    assert device.stat("rx_packets") == before + 1
    device.liar.deliver([HDR + FRAME, bytes(500), bytes(7)])
    assert device.stat("rx_packets") == before + 2


def rx_tail(value: int) -> Callable[[_Device], None]:
    def lie(device: _Device) -> None:
        device.liar.ktoa[1].hwtail = value
        device.liar.interrupt(vec_rx(1, 0))

    return lie


def rx_slot(**lies: int) -> Callable[[_Device], None]:
    return lambda device: device.liar.deliver([HDR + FRAME], **lies)


def rx_backwards(device: _Device) -> None:
    """Take back what was given: with two packets handed over, the index goes one back."""
    device.liar.deliver([HDR + FRAME])
    device.liar.deliver([HDR + FRAME])
    device.guest.run("true")
    device.liar.ktoa[1].hwtail = (device.liar.ktoa[1].hwtail - 1) % SLOTS
    device.liar.interrupt(vec_rx(1, 0))


def rx_endless(device: _Device) -> None:
    for i in range(SLOTS):
        device.liar.ring[1].slot[i].len = 100
        device.liar.ring[1].slot[i].flags = lib.VPT_NS_MOREFRAG
    device.liar.ktoa[1].hwtail = (device.liar.atok[1].head + SLOTS - 1) % SLOTS
    device.liar.interrupt(vec_rx(1, 0))


def tx_tail(value: int) -> Callable[[_Device], None]:
    def lie(device: _Device) -> None:
        device.liar.ktoa[0].hwtail = value
        device.liar.interrupt(vec_tx(1, 0))
        device.send(SLOTS)

    return lie


def tx_buffer(value: int) -> Callable[[_Device], None]:
    def lie(device: _Device) -> None:
        for i in range(SLOTS):
            device.liar.ring[0].slot[i].buf_idx = value
        device.send(3)

    return lie


LIES = {
    "rx index outside the ring": rx_tail(SLOTS),
    "rx index far outside": rx_tail(0xFFFFFFFF),
    "rx index backwards": rx_backwards,
    "rx buffer 0": rx_slot(buf_idx=0),
    "rx buffer outside the pool": rx_slot(buf_idx=0xFFFFFFF0),
    "rx length 0": rx_slot(len=0),
    "rx length beyond the buffer": rx_slot(len=0xFFFF),
    "rx packet without end": rx_endless,
    "rx packet cut off": rx_slot(flags=lib.VPT_NS_MOREFRAG),
    "tx index outside the ring": tx_tail(SLOTS + 5),
    "tx index given back twice": tx_tail(SLOTS - 2),
    "tx buffer outside the pool": tx_buffer(0x7FFFFFFF),
    "tx buffer 1": tx_buffer(1),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_takes_the_link_down_with_one_line(device, name):
    device.up()
    LIES[name](device)
    device.carrier(0)
    device.send(3)
    device.liar.interrupt(vec_rx(1, 0))
    assert sum(COMPLAINT in line for line in device.log()) == 1
    assert device.liar.hdr.peer_status == lib.VPT_S_FAILED


def test_recovers_when_the_host_starts_over(device):
    """A new generation is a new host: the driver forgives."""
    device.up()
    LIES["rx length 0"](device)
    device.carrier(0)
    device.liar.tell_the_truth()
    device.liar.hdr.generation += 1
    device.liar.interrupt(vec_cfg(1))
    device.carrier(1)


@pytest.mark.parametrize(
    "header",
    [
        {"flags": 1, "csum_start": 0xFFF0, "csum_offset": 16},
        {"flags": 1, "csum_start": 14, "csum_offset": 0xFFF0},
        {"flags": 1, "gso_type": lib.VPT_GSO_TCPV4, "gso_size": 0, "csum_start": 34, "csum_offset": 16},
        {"flags": 1, "gso_type": lib.VPT_GSO_UDP_L4, "gso_size": 1, "csum_start": 34, "csum_offset": 16},
        {"flags": 0, "gso_type": lib.VPT_GSO_UDP_L4, "gso_size": 8},
        {"flags": 0, "gso_type": 77, "gso_size": 100},
        {"flags": 1, "gso_type": lib.VPT_GSO_TCPV6, "gso_size": 0xFFFF, "csum_start": 50, "csum_offset": 16},
    ],
    ids=str,
)
def test_a_packet_with_a_wrong_header_is_dropped_and_counted(device, header):
    """It may come from another guest: no reason to give up on the host."""
    device.up()
    drops = device.stat("rx_drops")
    device.liar.deliver([bytes(ffi.buffer(ffi.new("struct vpt_vnet_hdr *", header))) + FRAME])
    assert device.stat("rx_drops") == drops + 1
    device.liar.deliver([HDR + FRAME])
    device.carrier(1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("abi_version", 2),
        ("hdr_size", 8192),
        ("region_size", 1 << 40),
        ("region_size", 12345),
        ("pairs", 0),
        ("pairs", 1 << 31),
        ("num_slots", 0),
        ("num_slots", 0xFFFFFFFF),
        ("buf_size", 0),
        ("buf_size", 0xFFFFFFC0),
        ("csb_atok_ofs", 0xFFFFFFC0),
        ("csb_ktoa_ofs", 0),
        ("netmap_if_ofs", 0xFFFFFFF8),
        ("buf_pool_ofs", 0xFFFFFFC0),
        ("num_bufs", 0xFFFFFFFF),
        ("host_peer_id", 0x10000),
        ("mtu", 3),
    ],
)
def test_a_header_that_lies_is_not_bound(device, field, value):
    device.guest.run("rmmod vpt_net; dmesg -c >/dev/null")
    device.liar.tell_the_truth()
    setattr(device.liar.hdr, field, value)
    try:
        device.guest.run("insmod /lib/modules/vpt_net.ko")
        assert device.guest.run("[ -e /sys/class/net/eth0 ]", check=False).status
        complaints = [line for line in device.log() if "0000:" in line and "probe" not in line]
        assert len(complaints) == 1
        assert field in complaints[0]
    finally:
        reload(device)


@pytest.mark.parametrize("offset", [-8, 1, 0x7FFFFFFFFFFFFFF0, 12])
def test_a_ring_out_of_place_is_not_bound(device, offset):
    device.guest.run("rmmod vpt_net; dmesg -c >/dev/null")
    device.liar.nm_if.ring_ofs[1] = offset
    try:
        device.guest.run("insmod /lib/modules/vpt_net.ko")
        assert device.guest.run("[ -e /sys/class/net/eth0 ]", check=False).status
        assert any("rx ring is not where the header says" in line for line in device.log())
    finally:
        reload(device)


def reload(device: _Device) -> None:
    device.liar.tell_the_truth()
    device.guest.run("rmmod vpt_net; insmod /lib/modules/vpt_net.ko; ip addr add 10.0.0.1/24 dev eth0")


def test_random_garbage_never_hurts_the_guest(device):
    """Everything that a host can write, at random, while the guest sends, and goes down and up."""
    rng = random.Random(1)
    liar, guest = device.liar, device.guest
    fields = ("link", "generation", "host_status", "host_error", "num_slots", "buf_pool_ofs")
    for _ in range(5):
        device.up()
        job = guest.spawn("vpt_flow send 10.0.0.2 9 500 64 1000; ip link set eth0 down; ip link set eth0 up")
        for _ in range(400):
            ring, slot = rng.randrange(2), rng.randrange(SLOTS)
            what = rng.randrange(5)
            if what == 0:
                field = rng.choice(("hwtail", "kern_need_kick", "kick_at"))
                setattr(liar.ktoa[ring], field, rng.getrandbits(32))
            elif what == 1:
                liar.ktoa[ring].hwtail = rng.randrange(SLOTS)
            elif what == 2:
                anything, possible = rng.getrandbits(32), 2 + rng.randrange(2 * SLOTS)
                liar.ring[ring].slot[slot].buf_idx = rng.choice((anything, possible))
            elif what == 3:
                liar.ring[ring].slot[slot].len = rng.getrandbits(16)
                liar.ring[ring].slot[slot].flags = rng.getrandbits(16)
            elif rng.random() < 0.1:
                setattr(liar.hdr, rng.choice(fields), rng.choice((rng.getrandbits(31), 0, 1, 4, 128)))
            liar.interrupt(rng.randrange(3))
        job.wait(30, check=False)
    device.up()
    assert not guest.run("dmesg | grep -E 'BUG|Oops|Call Trace|general protection'", check=False).output
    assert "Oops" not in guest.console()
