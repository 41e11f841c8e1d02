# SPDX-License-Identifier: BSD-2-Clause
"""A running guest: QEMU, its console, and commands run in it.

ttyS0 is the console: kernel messages, written by QEMU to a file. The command channel is a virtio-serial port,
for an emulated UART loses characters under load; on our side it is a socket pair of which QEMU inherits one
end, so there is no path to clash or to be left behind. See _init.sh for what is said on it.
"""

from __future__ import annotations

import base64
import json
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from vpt.errors import GuestError, TimeoutExpired
from vpt.guest._image import Image
from vpt.qemu import Machine, Nic, Qemu, command_line, console_text

__all__ = ["Finished", "Guest", "Job"]

_BOOT_S = 60.0
_STOP_S = 5.0
_CONSOLE_LINES = 12
# For an answer, beyond the time that the command is given: the guest may be many times slower than we are.
_GRACE_S = 10.0


@dataclass(frozen=True)
class Finished:
    """A command that ended. `output` is stdout and stderr as they came."""

    status: int
    output: str

    def json(self) -> dict[str, Any]:
        """The last line of the output, which is an object."""
        lines = self.output.strip().splitlines()
        try:
            value = json.loads(lines[-1])
        except (IndexError, ValueError):
            raise GuestError(f"expected JSON from a guest, got: {self.output.strip()[-300:]!r}") from None
        if not isinstance(value, dict):
            raise GuestError(f"expected a JSON object from a guest, got: {lines[-1][:300]}")
        return value


class Guest:
    """A virtual machine booted from an `Image`. Use it as a context manager, or call `stop()`.

    Methods may be called from several threads; commands of one guest run one after the other.
    """

    def __init__(
        self,
        image: Image,
        qemu: Qemu,
        *,
        name: str,
        accel: Literal["kvm", "tcg"],
        nics: Iterable[Nic] = (),
        append: str = "",
        memory_mib: int = 256,
        cpus: int = 1,
        qmp: Path | None = None,
        extra: Iterable[str] = (),
        answer_s: float = 20.0,
    ) -> None:
        """answer_s: seconds that a command may take, unless it is told."""
        self.name = name
        self._answer_s = answer_s
        self._qemu = qemu
        self._machine = Machine(
            kernel=image.kernel.vmlinuz,
            initrd=image.initrd,
            accel=accel,
            nics=tuple(nics),
            append=append,
            memory_mib=memory_mib,
            cpus=cpus,
            name=name,
            qmp=qmp,
            extra=tuple(extra),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._received = b""
        self._last_id = 0
        self._last_job = 0
        self._lock = threading.RLock()
        self._folder: Path | None = None

    # ---- life ----

    def start(self) -> Self:
        """Start QEMU; returns at once. `wait_ready()` waits for user space."""
        with self._lock:
            if self._process is not None:
                raise GuestError(f"guest {self.name} runs already")
            self._folder = Path(tempfile.mkdtemp(prefix=f"vpt-{self.name}-"))
            ours, theirs = socket.socketpair()
            machine = replace(
                self._machine, console=f"file,path={self._folder / 'console'}", agent_fd=theirs.fileno()
            )
            with theirs, (self._folder / "stderr").open("wb") as stderr:
                self._process = subprocess.Popen(
                    command_line(machine, self._qemu),
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            ours.setblocking(False)
            self._channel = ours
            self._received = b""
        return self

    def wait_ready(self, timeout_s: float = _BOOT_S) -> Self:
        """Wait until the guest takes commands."""
        with self._lock:
            self._read_until(b"READY\n", timeout_s, "to boot")
        return self

    def reboot(self, timeout_s: float = _BOOT_S) -> None:
        """Reboot from inside, not asking user space, and wait until the guest takes commands again."""
        with self._lock:
            self._send("reboot -f", _GRACE_S)
            self._read_until(b"READY\n", timeout_s, "to reboot")

    def stop(self) -> None:
        """End the guest as pulling the plug would. Idempotent."""
        with self._lock:
            if self._process is not None:
                self._process.terminate()
                try:
                    self._process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
                self._process = None
            if self._channel is not None:
                self._channel.close()
                self._channel = None
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def kill(self) -> None:
        """SIGKILL to QEMU: the peer that vanishes in the middle of things. `stop()` is still due."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Self:
        return self if self._process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        if self._process is None:
            raise GuestError(f"guest {self.name} does not run")
        return self._process.pid

    # ---- commands ----

    def run(
        self, command: str, *, timeout_s: float | None = None, check: bool = True, what: str | None = None
    ) -> Finished:
        """Run a shell command to its end. With `check`, a status other than 0 raises GuestError.

        `what` names the command in errors, for one that is not for people's eyes.

        A command that takes longer than `timeout_s` (seconds, as the guest counts them; None: `answer_s`) is
        killed there and raises TimeoutExpired.
        """
        timeout_s = self._answer_s if timeout_s is None else timeout_s
        with self._lock:
            ident = self._send(command, timeout_s)
            what = what or command[:80]
            answer = f"to answer: {what}"
            output = self._read_until(f"\n< {ident} ".encode(), timeout_s + _GRACE_S, answer)
            status = self._read_until(b"\n", _GRACE_S, answer)
        done = Finished(int(status), output.decode(errors="replace"))
        if done.status == 128 + signal.SIGKILL:
            raise TimeoutExpired(
                f"guest {self.name}: `{what}` did not end within {timeout_s:.0f} s",
                hint=self._console_hint(),
            )
        if check and done.status:
            raise GuestError(
                f"guest {self.name}: `{what}` failed ({done.status}): {done.output.strip()[-500:]}",
                hint=self._console_hint(),
            )
        return done

    def spawn(self, command: str) -> Job:
        """Start a shell command and leave it running."""
        with self._lock:
            self._last_job += 1
            base = f"/run/job/{self._last_job}"
            script = base64.b64encode(command.encode()).decode()
            inner = f"sh {base}.sh >{base}.out 2>&1; echo $? >{base}.tmp; mv {base}.tmp {base}.rc"
            # A session of its own, so that kill() reaches whatever it starts.
            self.run(
                f"echo {script} | base64 -d >{base}.sh; "
                f"setsid sh -c '{inner}' </dev/null >/dev/null 2>&1 & echo $! >{base}.pid",
                what=command[:80],
            )
        return Job(self, base, command)

    def wait_until(self, command: str, timeout_s: float, what: str) -> None:
        """Run `command` again and again until it succeeds; `what` says in words what is being waited for."""
        end = time.monotonic() + timeout_s
        while self.run(command, check=False).status:
            if time.monotonic() > end:
                raise TimeoutExpired(
                    f"guest {self.name}: waited {timeout_s:.0f} s for {what}", hint=self._console_hint()
                )
            time.sleep(0.05)

    def console(self, lines: int | None = None) -> str:
        """What the guest's kernel has printed, or the last `lines` of it."""
        if self._folder is None:
            return ""
        try:
            text = console_text((self._folder / "console").read_bytes())
        except FileNotFoundError:
            return ""
        return text if lines is None else "\n".join(text.rstrip().splitlines()[-lines:])

    # ---- the channel ----

    def _send(self, command: str, timeout_s: float) -> int:
        if self._channel is None:
            raise GuestError(f"guest {self.name} does not run")
        self._last_id += 1
        if "\n" in command:
            command = f"echo {base64.b64encode(command.encode()).decode()} | base64 -d | sh"
        line = f"{self._last_id} {max(1, round(timeout_s))} {command}\n".encode()
        self._channel.setblocking(True)
        self._channel.settimeout(_GRACE_S)
        try:
            self._channel.sendall(line)
        except OSError as error:
            self._raise_if_dead()
            raise GuestError(
                f"guest {self.name} takes no commands: {error}", hint=self._console_hint()
            ) from error
        finally:
            self._channel.setblocking(False)
        return self._last_id

    def _read_until(self, end: bytes, timeout_s: float, what: str) -> bytes:
        """What comes before `end`; what follows it stays for the next call."""
        if self._channel is None:
            raise GuestError(f"guest {self.name} does not run")
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            while True:
                head, found, rest = self._received.partition(end)
                if found:
                    self._received = rest
                    return head
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutExpired(
                        f"guest {self.name}: waited {timeout_s:.0f} s for it {what}",
                        hint=self._console_hint(),
                    )
                if selector.select(min(left, 0.5)):
                    self._receive()
                elif "Kernel panic" in self.console():
                    raise GuestError(f"guest {self.name}: its kernel panicked", hint=self._console_hint())

    def _receive(self) -> None:
        assert self._channel is not None
        try:
            chunk = self._channel.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            chunk = b""
        if not chunk:
            self._raise_if_dead()
            raise GuestError(f"guest {self.name}: QEMU closed the command channel", hint=self._console_hint())
        self._received += chunk

    def _raise_if_dead(self) -> None:
        if self._process is None or self._folder is None:
            return
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return
        stderr = (self._folder / "stderr").read_text(errors="replace").strip()
        raise GuestError(
            f"guest {self.name}: QEMU ended with status {status}: {stderr[-500:] or 'no message'}",
            hint=self._console_hint(),
        )

    def _console_hint(self) -> str:
        tail = self.console(_CONSOLE_LINES)
        return f"its console ends with:\n{tail}" if tail else "its console is empty"


@dataclass(frozen=True)
class Job:
    """A command that `Guest.spawn()` left running."""

    guest: Guest
    base: str
    command: str

    def output(self) -> str:
        """What it has printed so far."""
        return self.guest.run(f"cat {self.base}.out 2>/dev/null", check=False).output

    def wait_output(self, text: str, timeout_s: float = 10.0) -> None:
        """Wait until it has printed `text`."""
        what = f"`{self.command[:60]}` to say {text}"
        self.guest.wait_until(f"grep -q '{text}' {self.base}.out", timeout_s, what)

    def wait(self, timeout_s: float, *, check: bool = True) -> Finished:
        """Wait until it ends. With `check`, a status other than 0 raises GuestError."""
        self.guest.wait_until(f"[ -e {self.base}.rc ]", timeout_s, f"`{self.command[:80]}` to end")
        status = int(self.guest.run(f"cat {self.base}.rc").output)
        done = Finished(status, self.output())
        if check and status:
            said = done.output.strip()[-500:]
            raise GuestError(f"guest {self.guest.name}: `{self.command[:80]}` failed ({status}): {said}")
        return done

    def kill(self) -> None:
        """End it, with what it started."""
        self.guest.run(f"kill -KILL -$(cat {self.base}.pid)", check=False)
