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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from vpt.bench.result import Metric
from vpt.bench.scenario import Measured, Params, Runnable, Scenario, Settings
from vpt.daemon.client import Client
from vpt.daemon.daemon import Settings as DaemonSettings
from vpt.daemon.embedded import EmbeddedDaemon
from vpt.daemon.runtime import ENV_RUNTIME_DIR, locate
from vpt.errors import TimeoutExpired, VptError
from vpt.qemu import find_qemu
from vpt.qemu.qmp import listener_pid

__all__ = ["SCENARIO"]

_PORTS = 100
_COMMAND_S = 30.0
_TOPOLOGY = """\
switches: [{{name: t}}]
ports: [{{name: "t{{n}}", count: {ports}, switch: t, kind: vhost-user, mac: "52:54:00:00:01:{{n:02x}}"}}]
"""


class _ControlPlane(Scenario):
    name: ClassVar[str] = "control-plane"
    title: ClassVar[str] = "What an operator waits for"
    metrics: ClassVar[Sequence[Metric]] = (
        Metric(name="ms", unit="ms", better="lower", title="Time from start to end"),
    )

    def points(self, settings: Settings) -> Sequence[Params]:  # noqa: ARG002
        return [{"ports": _PORTS}]

    @contextmanager
    def session(self, params: Params, settings: Settings) -> Iterator[Mapping[str, Runnable]]:  # noqa: ARG002
        ports = int(params["ports"])
        with ExitStack() as stack:
            paths = locate(stack.enter_context(TemporaryDirectory(prefix="vpt-bench-")))
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
                "vpt attach to a QEMU": partial(_attach, command, vptd, paths.runtime),
                "vpt port add": partial(_and_back, partial(command, *add), vptd, "x"),
                f"{ports} requests to add a port": partial(_add_many, vptd, ports),
                "requests to add and remove a port": partial(_add_and_remove, vptd),
            }

    def notes(self, settings: Settings, points: Sequence[object]) -> Sequence[str]:  # noqa: ARG002
        return [f"Besides those that are added there are {_PORTS} ports, of kind vhost-user."]


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


def _attach(command: Callable[..., Measured], vptd: Client, folder: Path) -> Measured:
    """All of it, QEMU's share included; there is no libvirt in between."""
    with _machine(folder) as qmp:
        measured = command("attach", str(qmp), "--switch", "other", "--port", "x")
    vptd.call("port.del", name="x")
    return measured


@contextmanager
def _machine(folder: Path) -> Iterator[Path]:
    """Somebody to attach to: a QEMU with a spare slot, whose firmware finds nothing to boot."""
    qmp, size = folder / "attach.qmp", "64M"
    line = [
        str(find_qemu().path), "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35,accel=tcg,memory-backend=mem", "-smp", "1,maxcpus=2",
        "-m", size, "-object", f"memory-backend-memfd,id=mem,size={size},share=on",
        "-device", "pcie-root-port,id=spare,chassis=1,slot=1",
        "-chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "-mon", "qmp,mode=control",
    ]  # fmt: skip
    with subprocess.Popen(line) as qemu:
        try:
            _await(lambda: qmp.exists() and listener_pid(qmp) == qemu.pid, "QEMU's QMP socket")
            yield qmp
        finally:
            qemu.kill()
    qmp.unlink(missing_ok=True)


def _await(done: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + _COMMAND_S
    while not done():
        if time.monotonic() > limit:
            raise TimeoutExpired(f"waited {_COMMAND_S:g} s for {what}")
        time.sleep(0.01)


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
