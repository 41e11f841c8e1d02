# SPDX-License-Identifier: BSD-2-Clause
"""Traffic between guests, measured inside them: ping, a file over TCP, a stream of numbered UDP packets."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from vpt.guest._guest import Guest
from vpt.percentile import tells

__all__ = ["Ping", "Tcp", "Udp", "ping", "tcp_file", "udp_stream"]

_TCP_PORT = 5001
_UDP_PORT = 5002
_UDP_IDLE_MS = 3000
_PING_WAIT_MS = 5000


@dataclass(frozen=True)
class Ping:
    """Echo requests and what came back.

    rtt_us:  round trips in microseconds, in the order of sending
    missing: numbers, from 0, of those that never came back
    """

    sent: int
    received: int
    seconds: float
    missing: tuple[int, ...]
    rtt_us: tuple[float, ...] = field(repr=False)

    @property
    def lost(self) -> int:
        return self.sent - self.received

    @property
    def rtt_us_median(self) -> float | None:
        return statistics.median(self.rtt_us) if self.rtt_us else None

    @property
    def rtt_us_p99(self) -> float | None:
        """None: too few came back for a 99th percentile."""
        return percentile(self.rtt_us, 99) if tells(99, len(self.rtt_us)) else None


@dataclass(frozen=True)
class Tcp:
    """A file sent over one TCP connection; `seconds` from connecting to the receiver's end of file."""

    bytes: int
    seconds: float
    sha256_ok: bool


@dataclass(frozen=True)
class Udp:
    """A stream of numbered packets; `seconds` is the sender's."""

    sent: int
    received: int
    bytes: int
    duplicates: int
    reordered: int
    seconds: float

    @property
    def lost(self) -> int:
        return self.sent - self.received


def percentile(values: tuple[float, ...], percent: int) -> float | None:
    """Nearest-rank percentile: a value that did occur. None without values."""
    if not values:
        return None
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def _uptime(guest: Guest) -> float:
    return float(guest.run("cat /proc/uptime").output.split()[0])


def ping(source: Guest, address: str, *, count: int, interval_s: float = 0.01, size: int = 56) -> Ping:
    """Ping `address` from a guest; `size` is the payload's. One ping before has the address resolved."""
    command = "vpt_ping {} {} {} {} {}"
    source.run(command.format(address, 1, 0, size, _PING_WAIT_MS))
    timeout_s = 20 + _PING_WAIT_MS / 1000 + count * (interval_s + 0.05)
    got = source.run(
        command.format(address, count, round(interval_s * 1e6), size, _PING_WAIT_MS), timeout_s=timeout_s
    ).json()
    return Ping(
        sent=int(got["sent"]),
        received=int(got["received"]),
        seconds=float(got["seconds"]),
        missing=tuple(got["missing"]),
        rtt_us=tuple(got["rtt_us"]),
    )


def tcp_file(source: Guest, target: Guest, address: str, *, mib: int, timeout_s: float = 120.0) -> Tcp:
    """Send `mib` MiB of random bytes from `source` to `target` at `address`; compare both ends' SHA-256."""
    port = f"{_TCP_PORT:04X}"
    source.run(f"[ $(stat -c %s /tmp/sent 2>/dev/null || echo 0) = {mib << 20} ] || "
               f"dd if=/dev/urandom of=/tmp/sent bs=1M count={mib} 2>/dev/null", timeout_s=60)  # fmt: skip
    # busybox's nc ends the connection when its input does; a pipe that is its own writer never ends.
    receiver = target.spawn(
        f"rm -f /tmp/hold; mkfifo /tmp/hold; nc -l -p {_TCP_PORT} <>/tmp/hold >/tmp/received"
    )
    # Listening (state 0A), on IPv4's or IPv6's wildcard.
    target.wait_until(
        f"grep -qE ':{port} 0+:0000 0A' /proc/net/tcp /proc/net/tcp6", 10, f"TCP port {_TCP_PORT} to listen"
    )
    before = _uptime(source)
    source.run(f"nc {address} {_TCP_PORT} </tmp/sent", timeout_s=timeout_s)
    receiver.wait(timeout_s)
    seconds = _uptime(source) - before
    sums = [
        guest.run(f"sha256sum <{path}; stat -c %s {path}", timeout_s=60).output.split()
        for guest, path in ((source, "/tmp/sent"), (target, "/tmp/received"))
    ]
    target.run("rm -f /tmp/received")
    return Tcp(bytes=int(sums[1][-1]), seconds=seconds, sha256_ok=sums[0] == sums[1])


def udp_stream(
    source: Guest,
    target: Guest,
    address: str,
    *,
    count: int,
    size: int = 64,
    pps: int = 0,
    burst: int = 1,
    timeout_s: float = 120.0,
) -> Udp:
    """Send `count` packets of `size` bytes (of UDP payload, at least 8); `pps` 0 is as fast as it goes.

    `burst` packets go down in one call, for the device or the switch to cut up (UDP segmentation offload).
    """
    receiver = target.spawn(f"vpt_flow recv {_UDP_PORT} {int(timeout_s * 1000)}")
    receiver.wait_output("ready")
    send = f"vpt_flow send {address} {_UDP_PORT} {count} {size} {pps} {burst}"
    sender = source.run(send, timeout_s=timeout_s).json()
    try:
        target.wait_until(f"[ -e {receiver.base}.rc ]", _UDP_IDLE_MS / 1000, "the receiver to end")
    finally:
        receiver.kill()
    got = receiver.wait(1).json()
    return Udp(
        sent=int(sender["sent"]),
        received=int(got["received"]),
        bytes=int(got["bytes"]),
        duplicates=int(got["duplicates"]),
        reordered=int(got["reordered"]),
        seconds=float(sender["seconds"]),
    )
