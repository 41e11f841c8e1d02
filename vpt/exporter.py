# SPDX-License-Identifier: BSD-2-Clause
"""The counters in Prometheus' text format, and a small HTTP server for it.

Read from the stats file: scraping costs vptd nothing, and goes on (with vpt_up 0) while it is away.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6

from vpt import __version__
from vpt.dataplane.stats import COUNTERS, WORKER_COUNTERS, Snapshot, StatsReader
from vpt.errors import MissingError, UsageError, VptError

__all__ = ["CONTENT_TYPE", "Exporter", "parse_listen", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# How long a client may take over its request: nobody can hold a thread for ever.
_CLIENT_TIMEOUT_S = 10.0

Labels = Mapping[str, str]
Sample = tuple[Labels, float]

# tx and rx are named from the guest's side, as everywhere.
_HELP = {
    "tx_packets": "Packets that the guest sent.",
    "tx_bytes": "Bytes that the guest sent.",
    "tx_batches": "Bursts taken from the guest's tx rings.",
    "kicks": "Doorbells that the guest rang.",
    "kicks_suppressed": "Bursts taken that no doorbell announced.",
    "tx_interrupts": "Interrupts sent because there is room in a tx ring again.",
    "tx_interrupts_suppressed": "Bursts given back that the guest did not want to hear of.",
    "tx_blocked": "Bursts left in the ring of a lossless port for want of room at the destination.",
    "tx_mac_limit": "Source addresses not learned: the port has its share of the table.",
    "rx_packets": "Packets delivered to the guest.",
    "rx_bytes": "Bytes delivered to the guest.",
    "rx_batches": "Bursts delivered to the guest.",
    "rx_interrupts": "Interrupts sent because packets were delivered.",
    "rx_interrupts_suppressed": "Passes that delivered packets and found the guest awake.",
    "copies": "Packet copies made.",
    "rx_sw_csum": "Checksums completed in software for this port.",
    "rx_sw_gso": "Packets segmented in software for this port.",
    "loops": "Rounds that the worker made.",
    "busy_loops": "Rounds that found work.",
    "sleeps": "Times that the worker went to sleep.",
    "wakes": "Times that something woke the worker.",
    "late_wakes": "Sleeps that ended by the time limit with work waiting; must stay 0.",
    "syscalls": "System calls that the worker made.",
    "spins": "Idle periods in which the worker spun, as policy adaptive has it.",
    "spins_vain": "Spins in which nothing came; then it spins less.",
}
# Told apart by labels: counter prefix -> (family, labels that the prefix stands for, label of the rest).
_FAMILIES: dict[str, tuple[str, Labels, str]] = {
    "tx_drop_": ("drops", {"direction": "tx"}, "cause"),
    "rx_drop_": ("drops", {"direction": "rx"}, "cause"),
    "broken_": ("breakdowns", {}, "reason"),
}
_FAMILY_HELP = {
    "drops": "Packets dropped, by direction and cause.",
    "breakdowns": "Times that the port was taken down because its peer broke the rules, by reason.",
}


def render(snapshot: Snapshot | None) -> str:
    """The exposition; None: there is no vptd."""
    lines = [
        *_family("up", "gauge", "1 if a vptd has a stats file here.", [({}, float(snapshot is not None))])
    ]
    lines += _family("build_info", "gauge", "Version of the exporter.", [({"version": __version__}, 1)])
    if snapshot is not None:
        start: list[Sample] = [({}, snapshot.start_ns / 1e9)]
        lines += _family("start_time_seconds", "gauge", "When vptd started, since the epoch.", start)
        lines += _port_lines(snapshot)
        lines += _worker_lines(snapshot)
    return "\n".join(lines) + "\n"


def _port_lines(snapshot: Snapshot) -> Iterator[str]:
    """A family's samples have to follow one another, so families are gathered first."""
    named = {queue.port_id: queue for queue in snapshot.queues}
    ports = [
        ({"port": named[i].port, "switch": named[i].switch, "kind": named[i].kind.label}, counters)
        for i, counters in snapshot.by_port().items()
    ]
    families: dict[str, list[Sample]] = {}
    for counter in COUNTERS:
        family, extra = _place(counter)
        samples = families.setdefault(family, [])
        samples += [({**labels, **extra}, counters[counter]) for labels, counters in ports]
    for family, samples in families.items():
        text = _HELP.get(family) or _FAMILY_HELP.get(family, f"Counter {family} of the port.")
        yield from _family(f"port_{family}_total", "counter", text, samples)


def _place(counter: str) -> tuple[str, Labels]:
    """The family that a counter of the data plane belongs to, and the labels that single it out there."""
    for prefix, (family, labels, rest) in _FAMILIES.items():
        if counter.startswith(prefix):
            return family, {**labels, rest: counter.removeprefix(prefix)}
    return counter, {}


def _worker_lines(snapshot: Snapshot) -> Iterator[str]:
    for counter in WORKER_COUNTERS:
        samples = [({"worker": str(worker.index)}, worker.counters[counter]) for worker in snapshot.workers]
        text = _HELP.get(counter, f"Counter {counter} of the worker.")
        yield from _family(f"worker_{counter}_total", "counter", text, samples)


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    yield f"# HELP vpt_{name} {text}"
    yield f"# TYPE vpt_{name} {kind}"
    for labels, value in samples:
        # Names of ports and switches have no character that would need an escape (models.Name).
        inside = ",".join(f'{label}="{of}"' for label, of in labels.items())
        yield f"vpt_{name}{{{inside}}} {value}" if inside else f"vpt_{name} {value}"


# ---- over HTTP ----


def parse_listen(text: str) -> tuple[str, int]:
    """ "127.0.0.1:9810", "[::1]:9810": address and port. Raises UsageError."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ip_address(host)
        number = int(port)
    except ValueError:
        number = -1
    if not 0 <= number <= 65535:
        raise UsageError(f"{text!r} is no address and port", hint="such as 127.0.0.1:9810 or [::1]:9810")
    return host, number


class Exporter(ThreadingHTTPServer):
    """GET /metrics, of the stats file `source`. serve_forever() until shutdown()."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], source: Path) -> None:
        self.address_family = AF_INET6 if ip_address(address[0]).version == 6 else AF_INET
        self.source = source
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            raise MissingError(
                f"can't listen on {address[0]} port {address[1]}: {error.strerror}",
                hint="choose another with --listen",
            ) from None

    def exposition(self) -> str:
        """Opens the file each time: a vptd that came back has a new one."""
        try:
            with StatsReader(self.source) as reader:
                return render(reader.read())
        except FileNotFoundError:
            return render(None)


class _Handler(BaseHTTPRequestHandler):
    server: Exporter
    server_version = f"vpt/{__version__}"
    timeout = _CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        """One page, and a plain word for everything else."""
        if self.path != "/metrics":
            self._answer(HTTPStatus.NOT_FOUND, "the counters are at /metrics\n", "text/plain")
            return
        try:
            self._answer(HTTPStatus.OK, self.server.exposition(), CONTENT_TYPE)
        except (VptError, OSError) as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n", "text/plain")

    def _answer(self, status: HTTPStatus, text: str, content_type: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent: a scrape every few seconds is nothing to tell."""
