# SPDX-License-Identifier: BSD-2-Clause
"""Fuzzing of what a front-end's socket leads to: decoder, session, and the control side of the data plane.

An input is a sequence of steps. A step is a message of the table with payload bytes and descriptors of the
input's choice, or bytes as they are, or the end of the connection. After each input nothing may be held that
was not held before, and no exception but RuleError may have come out of anything.

tests/fuzz_vhost_user.py runs it under libFuzzer, tests/unit/test_fuzz_vhost_user.py without.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass

from vpt.conform.front_end import PLAIN, USUAL
from vpt.conform.guest_memory import GPA_BASE, MIB, PAGE, UVA_OFFSET
from vpt.daemon.descriptors import Closer
from vpt.daemon.ratelimit import PortLog
from vpt.daemon.transports.base import Settings
from vpt.daemon.transports.vhost.session import OFFERED_PROTOCOL, Session
from vpt.dataplane import Engine, Kind, Policy
from vpt.vhost_user import (
    MAX_PAYLOAD,
    SPECS,
    U64,
    Decoder,
    DeviceConfig,
    DeviceStateFd,
    Inflight,
    Log,
    MemReg,
    MemTable,
    Payload,
    Region,
    Request,
    RuleError,
    VirtioFeature,
    VringAddr,
    VringFd,
    VringState,
    close_fds,
    encode,
)

__all__ = ["Target", "seeds"]

RAW = 0x80  # a step with this bit: the rest is how many bytes follow as they are
LEAVE = 0xFF
REQUESTS = sorted(SPECS)
SIZES = {
    request: [n for n in range(MAX_PAYLOAD) if SPECS[request].payload.size_ok(n)] for request in REQUESTS
}
PAIRS = 2
MAX_FDS = 9
LOOK_EVERY = 64  # inputs between two looks at the mappings


class _Input:
    """Bytes, zeroes once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece.ljust(count, b"\0")

    def byte(self) -> int:
        return self.take(1)[0]


class Target:
    """An engine with one port; one_input() is called over and over."""

    def __init__(self) -> None:
        self._engine = Engine(1)
        switch = self._engine.add_switch("sw0")
        self._port = switch.add_port("x", Kind.VHOST_USER, pairs=PAIRS, mtu=1500, policy=Policy.adaptive(0))
        self._pool = _descriptors()
        self._closer = Closer(PortLog(logging.getLogger("vpt.fuzz"), "x"))
        self._loop = asyncio.new_event_loop()
        self._runs = 0
        self._held: tuple[int, int] | None = None
        self.one_input(b"")
        self.settle()

    def close(self) -> None:
        """Stop all."""
        self._loop.close()
        self._engine.close()
        close_fds(self._pool)

    def settle(self) -> None:
        """Take what is held now for what may be held."""
        self._held = self._fds(), self._mappings()

    def one_input(self, data: bytes) -> set[str]:
        """Run an input; returns what it reached: names of messages done, of rules broken."""
        reached: set[str] = set()
        self._loop.run_until_complete(self._connections(_Input(data), reached))
        self._runs += 1
        if self._held is not None:
            assert self._fds() == self._held[0], "descriptors are held"
            if self._runs % LOOK_EVERY == 0 or self._runs < LOOK_EVERY:
                assert self._mappings() == self._held[1], "mappings are held"
        return reached

    async def _connections(self, source: _Input, reached: set[str]) -> None:
        """In a loop, as in vptd; nothing waits."""
        while True:
            self._connection(source, reached)
            if not source:
                break

    def _connection(self, source: _Input, reached: set[str]) -> None:
        """One connection, until it ends."""
        self._port.vhost_reset()
        counters: Counter[str] = Counter()
        settings = Settings(mtu=1500, polls=True)
        session = Session(
            self._port,
            max_pairs=PAIRS,
            settings=settings,
            counters=counters,
            closer=self._closer,
            in_band=True,
        )
        decoder = Decoder(discard=self._closer.close)
        try:
            while source:
                how = source.byte()
                if how == LEAVE:
                    break
                data, count = _step(how, source)
                for message in decoder.feed(data, self._some(count, source.byte() if count else 0)):
                    with message:
                        reply = session.handle(message)
                        if reply is not None:
                            encode(message.request, reply.payload, reply=True)
                            reply.close()
                        reached.add(message.name)
        except RuleError as error:
            reached.add(error.rule.name)
        finally:
            session.describe()
            decoder.close()
            self._port.vhost_reset()
            session.close()
            self._engine.events()
            while self._closer.pending:
                time.sleep(0)
        reached.update(counters)

    def _some(self, count: int, start: int) -> list[int]:
        return [os.dup(self._pool[(start + n) % len(self._pool)]) for n in range(count)]

    @staticmethod
    def _fds() -> int:
        return len(os.listdir("/proc/self/fd"))

    @staticmethod
    def _mappings() -> int:
        with open("/proc/self/maps", "rb") as maps:
            return maps.read().count(b"memfd:guest")


def _step(how: int, source: _Input) -> tuple[bytes, int]:
    """The bytes of a step, and how many descriptors come with them."""
    if how & RAW:
        return source.take(how & ~RAW), source.byte() % (MAX_FDS + 1)
    request = REQUESTS[how % len(REQUESTS)]
    fds = source.byte()
    sizes = SIZES[request]
    size = sizes[source.byte() % len(sizes)] if len(sizes) > 1 else sizes[0]
    head = Request(request).to_bytes(4, sys.byteorder)
    flags = 1 | (8 if fds & 0x80 else 0)
    head += flags.to_bytes(4, sys.byteorder) + size.to_bytes(4, sys.byteorder)
    return head + source.take(size), (fds & 0x7F) % (MAX_FDS + 1)


EVENT, MEMORY, SMALL, PIPE, FOLDER, NULL, CHANNEL, FAR = range(8)  # in the pool


def _descriptors() -> list[int]:
    memory, small = os.memfd_create("guest"), os.memfd_create("guest")
    os.ftruncate(memory, 4 * MIB)
    os.ftruncate(small, 100)
    read, write = os.pipe()
    os.close(write)
    return [
        os.eventfd(0, os.EFD_NONBLOCK),
        memory,
        small,
        read,
        os.open("/", os.O_RDONLY | os.O_DIRECTORY),
        os.open("/dev/null", os.O_RDONLY),
        *(end.detach() for end in socket.socketpair()),
    ]


# ---- seeds: what a front-end says that behaves ----


@dataclass(frozen=True)
class _Said:
    """A message: payload, the descriptor that comes with it (place in the pool), how many."""

    request: Request
    payload: Payload | None = None
    fd: int = 0
    fds: int = 0

    def step(self) -> bytes:
        """As a step of an input."""
        body = self.payload.pack() if self.payload is not None else b""
        out = bytes([REQUESTS.index(self.request), self.fds | 0x80])
        if len(SIZES[self.request]) > 1:
            out += bytes([SIZES[self.request].index(len(body))])
        return out + body + (bytes([self.fd]) if self.fds else b"")


R = Request
F = VirtioFeature
_REGION = Region(GPA_BASE, 4 * MIB, GPA_BASE + UVA_OFFSET, 0)
_EXTRA = Region(GPA_BASE + 8 * MIB, PAGE, GPA_BASE + 8 * MIB + UVA_OFFSET, PAGE)


def _started(features: int, num: int) -> list[_Said]:
    said = [
        _Said(R.GET_FEATURES),
        _Said(R.GET_PROTOCOL_FEATURES),
        _Said(R.SET_PROTOCOL_FEATURES, U64(int(OFFERED_PROTOCOL))),
        _Said(R.GET_QUEUE_NUM),
        _Said(R.SET_OWNER),
        _Said(R.SET_FEATURES, U64(features)),
        _Said(R.SET_MEM_TABLE, MemTable((_REGION,)), MEMORY, 1),
    ]
    base = 0x8000_8000 if features & F.RING_PACKED else 0
    for index in range(2):
        at = GPA_BASE + UVA_OFFSET + index * 0x10000
        said += [
            _Said(R.SET_VRING_NUM, VringState(index, num)),
            _Said(R.SET_VRING_BASE, VringState(index, base)),
            _Said(R.SET_VRING_ADDR, VringAddr(index, 0, at, at + 0x8000, at + 0xC000, 0)),
            _Said(R.SET_VRING_CALL, VringFd(index), EVENT, 1),
            _Said(R.SET_VRING_ERR, VringFd(index), EVENT, 1),
            _Said(R.SET_VRING_KICK, VringFd(index), EVENT, 1),
            _Said(R.SET_VRING_ENABLE, VringState(index, 1)),
        ]
    return said


def seeds() -> dict[str, bytes]:
    """Inputs by name."""
    split, packed = _started(int(USUAL), 64), _started(int(PLAIN | F.RING_PACKED), 7)
    stopped = [_Said(R.GET_VRING_BASE, VringState(index, 0)) for index in (0, 1)]
    logged = [
        _Said(R.SET_LOG_BASE, Log(64 << 10, 0), MEMORY, 1),
        _Said(R.SET_FEATURES, U64(int(USUAL | F.LOG_ALL))),
        _Said(R.SET_LOG_FD, None, EVENT, 1),
    ]
    inflight = [
        _Said(R.GET_INFLIGHT_FD, Inflight(0, 0, 2, 64)),
        _Said(R.SET_INFLIGHT_FD, Inflight(MIB, 0, 2, 64), MEMORY, 1),
    ]
    slots = [
        _Said(R.GET_MAX_MEM_SLOTS),
        _Said(R.ADD_MEM_REG, MemReg(_EXTRA), MEMORY, 1),
        _Said(R.REM_MEM_REG, MemReg(_EXTRA)),
    ]
    rest = [
        _Said(R.NET_SET_MTU, U64(1400)),
        _Said(R.SET_STATUS, U64(15)),
        _Said(R.GET_STATUS),
        _Said(R.RESET_DEVICE),
        _Said(R.RESET_OWNER),
    ]
    channel = [_Said(R.SET_BACKEND_REQ_FD, None, CHANNEL, 1)]
    config = [
        _Said(R.GET_CONFIG, DeviceConfig(0, 0, bytes(12))),
        _Said(R.SET_CONFIG, DeviceConfig(0, 1, bytes(6))),
    ]
    state = [
        _Said(R.SET_DEVICE_STATE_FD, DeviceStateFd(direction, 0), PIPE, 1)
        for direction in (DeviceStateFd.SAVE, DeviceStateFd.LOAD)
    ]
    said = {
        "config": split[:7] + config,
        "in-band": [*split[:5], *channel, *split[5:], _Said(R.VRING_KICK, VringState(1, 0))],
        "rarp": [*split, _Said(R.SEND_RARP, U64(0x0100_0054_52))],
        "state": split[:7]
        + state[:1]
        + [_Said(R.CHECK_DEVICE_STATE)]
        + state[1:]
        + [_Said(R.CHECK_DEVICE_STATE)],
        "split": split + stopped + split[5:6],
        "packed": packed + stopped,
        "log": split + logged + stopped,
        "inflight": split[:7] + inflight + split[7:],
        "slots": split + slots,
        "rest": split + rest + split[5:],
    }
    out = {name: b"".join(message.step() for message in messages) for name, messages in said.items()}
    raw = (
        encode(R.GET_FEATURES)
        + encode(R.SET_OWNER)
        + encode(R.SET_FEATURES, U64(int(PLAIN)), need_reply=True)
    )
    out["raw"] = bytes([RAW | len(raw)]) + raw + b"\0"
    out["cut"] = bytes([RAW | 7]) + raw[:7] + b"\0" + bytes([RAW | 5]) + raw[7:12] + b"\0"
    out["twice"] = out["split"] + bytes([LEAVE]) + out["packed"]
    return out
