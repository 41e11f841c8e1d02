# SPDX-License-Identifier: BSD-2-Clause
"""control-plane: what an operator waits for.

Commands are whole processes, from start to end, as from a shell. Requests go over one connection to vptd, as
from a program: no interpreter is started for each. The vptd is a whole one, with its journal, in a thread of
this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from tempfile import TemporaryDirectory
from typing import ClassVar

from vpt.bench.numbers import beside
from vpt.bench.programs import QEMU
from vpt.bench.result import Metric, Point
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.bench.scenarios._attach import Command, attach_to_domain, attach_to_qemu
from vpt.bench.scenarios._verdict import said
from vpt.daemon.client import Client
from vpt.daemon.daemon import Settings as DaemonSettings
from vpt.daemon.embedded import EmbeddedDaemon
from vpt.daemon.runtime import ENV_RUNTIME_DIR, private
from vpt.errors import MissingError, TimeoutExpired, VptError

__all__ = ["SCENARIO"]

_PORTS = 100
_COMMAND_S = 30.0
_DOMAIN = "vpt attach to a domain"
#: What an operator waits for without noticing, in ms: of which variant, which metric, and what it is.
_BOUNDS = (
    ("vpt --help", "ms", 150.0, ""),
    ("vpt ls", "ms", 250.0, ""),
    (f"vpt apply of {_PORTS} ports", "ms", 2000.0, ""),
    (_DOMAIN, "beyond", 1000.0, " beyond libvirt's own time"),
)
_TOPOLOGY = """\
switches: [{{name: t}}]
ports: [{{name: "t{{n}}", count: {ports}, switch: t, kind: vhost-user, mac: "52:54:00:00:01:{{n:02x}}"}}]
"""


class _ControlPlane(Scenario):
    _missing = ""

    name: ClassVar[str] = "control-plane"
    title: ClassVar[str] = "What an operator waits for"
    programs: ClassVar[Sequence[str]] = (QEMU,)
    metrics: ClassVar[Sequence[Metric]] = (
        Metric(name="ms", unit="ms", better="lower", title="Time from start to end"),
        Metric(name="libvirt", unit="ms", title="libvirt's own"),
        Metric(name="beyond", unit="ms", better="lower", title="Beyond libvirt's own"),
    )

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        return [{"ports": _PORTS}]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:  # noqa: ARG002
        ports = int(params["ports"])
        with ExitStack() as stack:
            paths = private(stack.enter_context(TemporaryDirectory(prefix="vpt-bench-")))
            stack.enter_context(EmbeddedDaemon(DaemonSettings(paths, keeper=False)))
            vptd = stack.enter_context(Client(paths.control))
            for switch in ("s", "other"):
                vptd.call("switch.add", name=switch)
            _add(vptd, "s", "p", ports)
            command = partial(_command, os.environ | {ENV_RUNTIME_DIR: str(paths.runtime)})
            topology = paths.runtime / "topology.yaml"
            topology.write_text(_TOPOLOGY.format(ports=ports))
            apply = partial(command, "apply", str(topology))
            add = ["port", "add", "other", "x", "--kind", "vhost-user"]
            yield {
                "vpt --help": partial(command, "--help"),
                "vpt ls": partial(command, "ls"),
                f"vpt apply of {ports} ports": partial(_apply_and_back, apply, vptd, ports),
                "vpt attach to a QEMU": partial(attach_to_qemu, command, vptd, "other", paths.runtime),
                **self._with_libvirt(stack, command, vptd),
                "vpt port add": partial(_and_back, partial(command, *add), vptd, "x"),
                f"{ports} requests to add a port": partial(_add_many, vptd, ports),
                "requests to add and remove a port": partial(_add_and_remove, vptd),
            }

    def _with_libvirt(self, stack: ExitStack, command: Command, vptd: Client) -> dict[str, Runnable]:
        """Where there is one; else a note says why it is not measured."""
        try:
            return {_DOMAIN: stack.enter_context(attach_to_domain(command, vptd, "other"))}
        except MissingError as why:
            self._missing = f"NOT MEASURED: {_DOMAIN}: {why} ({why.hint})"
            return {}

    def notes(self, settings: Settings, points: Sequence[Point]) -> Sequence[str]:  # noqa: ARG002
        return [
            f"Besides those that are added there are {_PORTS} ports, of kind vhost-user.",
            *([self._missing] if self._missing else []),
            *_verdicts(points),
        ]


def _verdicts(points: Sequence[Point]) -> Iterator[str]:
    for point, (name, metric, most_ms, what) in product(points, _BOUNDS):
        variant = point.variant(name)
        summary = variant.summary(metric) if variant else None
        if summary is not None:
            took = beside(summary.median, most_ms)
            claim = f"{name} takes less than {most_ms:.0f} ms{what}"
            yield said(summary.median < most_ms, claim, f"{took} ms")


def _timed(what: Callable[[], object]) -> Measured:
    began = time.perf_counter()
    what()
    return Measured({"ms": 1e3 * (time.perf_counter() - began)})


def _command(env: Mapping[str, str], *arguments: str) -> Measured:
    """The command line, in the interpreter that runs this."""
    line = [sys.executable, "-m", "vpt.cli", *arguments]

    def run() -> None:
        try:
            subprocess.run(line, env=env, check=True, capture_output=True, timeout=_COMMAND_S)
        except subprocess.TimeoutExpired:
            raise TimeoutExpired(f"{' '.join(line)} did not end within {_COMMAND_S:g} s") from None
        except subprocess.CalledProcessError as error:
            raise VptError(f"{' '.join(line)} failed: {error.stderr.decode(errors='replace')}") from None

    return _timed(run)


def _and_back(what: Callable[[], Measured], vptd: Client, port: str) -> Measured:
    """Time it, and remove the port that it made."""
    measured = what()
    vptd.call("port.del", name=port)
    return measured


def _add(vptd: Client, switch: str, prefix: str, ports: int) -> None:
    for i in range(ports):
        vptd.call("port.add", switch=switch, name=f"{prefix}{i}", kind="vhost-user")


def _apply_and_back(apply: Callable[[], Measured], vptd: Client, ports: int) -> Measured:
    """Time it, and remove what it made."""
    measured = apply()
    steps = [{"action": "del-port", "name": f"t{i}"} for i in range(1, ports + 1)]
    vptd.call("apply", steps=[*steps, {"action": "del-switch", "name": "t"}])
    return measured


def _add_many(vptd: Client, ports: int) -> Measured:
    measured = _timed(partial(_add, vptd, "other", "q", ports))
    for i in range(ports):
        vptd.call("port.del", name=f"q{i}")
    return measured


def _add_and_remove(vptd: Client) -> Measured:
    def both() -> None:
        _add(vptd, "other", "y", 1)
        vptd.call("port.del", name="y0")

    return _timed(both)


SCENARIO = _ControlPlane()
