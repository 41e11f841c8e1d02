# SPDX-License-Identifier: BSD-2-Clause
"""A real vptd in a folder of its own, and a process that runs the command line against it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from support.waiting import PATIENCE_S, until
from vpt.daemon.client import Client
from vpt.daemon.runtime import RuntimePaths
from vpt.errors import DaemonError


def gone(pid: int) -> bool:
    """Has that process ended? One that nobody reaped counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Vptd:
    """start(), kill() and stop() as often as a test likes; close() leaves no process and no file."""

    def __init__(self, *options: str) -> None:
        # Not pytest's tmp_path: a socket's path has 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="vptd-"))
        self.paths = RuntimePaths(self.folder / "run", self.folder / "state")
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self._keepers: set[int] = set()

    def spawn(self, *options: str) -> subprocess.Popen[bytes]:
        """A vptd process, started and not waited for."""
        # The keeper outlives vptd for longer than a busy host takes to start the next one, and not for long.
        argv = [sys.executable, "-m", "vpt.daemon.main", "--linger", "20", "--log-level", "debug"]
        argv += ["--runtime-dir", str(self.paths.runtime), "--state-dir", str(self.paths.state)]
        with self.log.open("ab") as log:
            return subprocess.Popen([*argv, *self.options, *options], stdin=subprocess.DEVNULL, stderr=log)

    def start(self, *options: str) -> None:
        self.process = self.spawn(*options)
        until(self.answers, "vptd to answer")

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"vptd ended: {self.said()}"
        try:
            self._keepers.add(self.call("daemon.status")["keeper"]["pid"] or 0)
        except DaemonError:
            return False
        except TypeError:
            pass  # it runs without keeper
        return True

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def said(self) -> str:
        return self.log.read_text()

    def client(self) -> Client:
        return Client(self.paths.control, timeout=PATIENCE_S)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        with self.client() as client:
            return client.call(method, **params)

    def socket(self, port: str) -> str:
        return str(self.paths.port_socket(port))

    def keeper(self) -> int:
        """Process id of the keeper, which must be there."""
        pid = self.call("daemon.status")["keeper"]["pid"]
        assert pid
        self._keepers.add(pid)
        return int(pid)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            if self.answers():
                self.call("daemon.stop", keep=False)
            try:
                self.process.wait(PATIENCE_S)
            finally:
                self.process.kill()
        for pid in self._keepers - {0}:
            if not gone(pid):
                os.kill(pid, signal.SIGTERM)
                until(lambda pid=pid: gone(pid), "the keeper to end")
        shutil.rmtree(self.folder)


def run_vpt(runtime: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`vpt ARGUMENTS...` against the vptd in that folder."""
    return subprocess.run(
        [sys.executable, "-m", "vpt.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "VPT_RUNTIME_DIR": str(runtime), **environment},
    )


# The interpreter may be where only root can read it: all that is needed is loaded first.
_AS_NOBODY = """
import os, sys
import vpt.cli.attach, vpt.libvirt_plugin.attach, vpt.libvirt_plugin.qmp, vpt.libvirt_plugin.rules
from vpt.cli import main
from vpt.libvirt_plugin._connection import binding
binding()
os.setgroups([]), os.setgid(65534), os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


def run_vpt_as_nobody(runtime: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same as a user without rights. Needs root."""
    return subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, "--runtime-dir", str(runtime), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def vpt_json(runtime: Path, *arguments: str) -> dict[str, Any]:
    """The object that `vpt ARGUMENTS... --json` prints; it must succeed."""
    done = run_vpt(runtime, *arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed
