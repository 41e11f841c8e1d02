# SPDX-License-Identifier: BSD-2-Clause
"""Open vSwitch with DPDK as a vhost-user back-end: a bridge of its own, in a database and folder of its own.

Its thread never sleeps, so the process is stopped (SIGSTOP) while others are measured.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from vpt.bench.scenarios._ports import thread_name, threads_of
from vpt.bench.scenarios._testpmd import memory_is_huge
from vpt.errors import MissingError, TimeoutExpired

__all__ = ["OpenVSwitch"]

_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_DAEMON = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
_READY_S = 30.0
_MEMORY_MIB = 256


class OpenVSwitch:
    """One bridge that learns addresses, with vhost-user ports whose sockets are its own (a BackEnd).

    MissingError: it is not installed, or did not start; with its last words.
    """

    def __init__(self, stack: ExitStack, cpu: int, commander: int, devices: int) -> None:
        if not (shutil.which("ovsdb-server") and os.access(_DAEMON, os.X_OK)):
            raise MissingError(
                "Open vSwitch with DPDK is not installed", hint="apt-get install openvswitch-switch-dpdk"
            )
        if not memory_is_huge():  # it adds --legacy-mem to --no-huge, which DPDK does not take in memory
            raise MissingError("it needs huge pages", hint="sysctl vm.nr_hugepages=700")
        folder = stack.enter_context(TemporaryDirectory(prefix="vpt-ovs-"))
        self._folder = Path(folder)
        self._log = self._folder / "log"
        names = ("RUN", "LOG", "DB", "SYSCONF")
        self._env = os.environ | {f"OVS_{name}DIR": folder for name in names} | {"RUNTIME_DIRECTORY": folder}
        self._tool("ovsdb-tool", "create", "conf.db", str(_SCHEMA))
        self._spawn(stack, "ovsdb-server", "conf.db", "--remote=punix:db.sock", "--unixctl=ovsdb.ctl")
        self._until((self._folder / "db.sock").exists, "its database")
        dpdk = f"--no-pci --in-memory --iova-mode=va -m {_MEMORY_MIB} --single-file-segments"
        self._vsctl("--no-wait", "init")
        self._vsctl(
            "--no-wait",
            *("set", "Open_vSwitch", ".", "other_config:dpdk-init=true", "other_config:vhost-sock-dir=."),
            f"other_config:pmd-cpu-mask={1 << cpu:#x}",
            f"other_config:dpdk-socket-limit={_MEMORY_MIB}",  # it would take all there is
            "other_config:per-port-memory=true",  # else its buffers leave what a device needs to chance
            f"other_config:dpdk-lcore-mask={1 << commander:#x}",
            f'other_config:dpdk-extra="{dpdk}"',
        )
        daemon = self._spawn(stack, _DAEMON, "unix:db.sock", "--unixctl=vswitchd.ctl", "--no-chdir")
        stack.callback(daemon.send_signal, signal.SIGCONT)
        self.process = daemon.pid
        self._vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        for i in range(devices):
            self._vsctl("add-port", "br0", f"p{i}", "--", "set", "Interface", f"p{i}", "type=dpdkvhostuser")
        self.sockets = [str(self._folder / f"p{i}") for i in range(devices)]
        for path in self.sockets:
            self._until(Path(path).exists, f"the socket {path}")
        self._until(lambda: bool(self._moving()), "its thread that moves packets")
        self.moving = self._moving()
        self.ahead: set[int] = set()

    def start(self) -> None:
        os.kill(self.process, signal.SIGCONT)

    def stop(self) -> dict[str, float]:
        os.kill(self.process, signal.SIGSTOP)
        return {}

    def taken(self) -> int:
        """It is not asked: the front-end counts what goes round."""
        return 0

    def tell(self) -> str:
        return "it is not asked"

    def _moving(self) -> set[int]:
        tids = threads_of(self.process, "Open vSwitch")
        return {tid for tid in tids if thread_name(tid).startswith("pmd-")}

    def _tool(self, *command: str) -> None:
        done = subprocess.run(
            command, cwd=self._folder, env=self._env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise MissingError(f"{command[0]} failed: {done.stderr.strip()}{self._tail()}")

    def _vsctl(self, *arguments: str) -> None:
        self._tool("ovs-vsctl", "--db=unix:db.sock", f"--timeout={_READY_S:.0f}", *arguments)

    def _spawn(self, stack: ExitStack, *command: str) -> subprocess.Popen[bytes]:
        log = stack.enter_context(self._log.open("ab"))
        # No busy loop may outlive a benchmark that is killed.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            cwd=self._folder,
            env=self._env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        stack.callback(_end, process)
        return process

    def _tail(self) -> str:
        lines: Sequence[str] = ()
        if self._log.exists():
            lines = self._log.read_text(errors="replace").strip().splitlines()
        return "; it said last:\n" + "\n".join(lines[-5:]) if lines else ""

    def _until(self, met: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + _READY_S
        while not met():
            if time.monotonic() > end:
                raise TimeoutExpired(f"Open vSwitch did not give {what} within {_READY_S:g} s{self._tail()}")
            time.sleep(0.01)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
