# SPDX-License-Identifier: BSD-2-Clause
"""Talk to a running vptd: one call per method, errors as the exceptions that the daemon raised.

    with Client(locate().control) as vptd:
        vptd.call("switch.add", name="sw0", may_exist=True)

Standard library only: the command line must answer at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
from collections.abc import Callable
from typing import Any

from vpt.closing import Closing
from vpt.daemon.runtime import command, not_running, whole_command
from vpt.daemon.sockets import connect_unix, unix_path
from vpt.errors import DaemonError, MissingError, TimeoutExpired, VptError, from_wire
from vpt.hints import vpt

__all__ = ["Client"]


class Client(Closing):
    """A connection to a vptd.

    Not for several threads at a time. timeout: seconds that one answer may take.
    """

    def __init__(self, path: str | os.PathLike[str], timeout: float = 30.0) -> None:
        self._path = unix_path(path)
        self._timeout = timeout
        self._id = 0
        self._sock = self._connect()
        self._file = self._sock.makefile("rb")

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connect_unix(sock, self._path, self._timeout)
        except OSError as error:
            sock.close()
            raise _connect_error(self._path, error) from None
        return sock

    def fileno(self) -> int:
        """For poll(): readable between calls means that vptd has hung up."""
        return self._sock.fileno()

    def hung_up(self) -> bool:
        """Has vptd hung up? Between calls; does not block."""
        waiting = select.poll()
        waiting.register(self.fileno(), select.POLLIN)
        return bool(waiting.poll(0))

    def typed(self, *words: str) -> str:
        """For a hint: what to type to have `vpt WORDS` ask this vptd."""
        return vpt(*words, runtime=os.path.dirname(self._path))

    def close(self) -> None:
        """Hang up. Harmless the second time."""
        self._file.close()
        self._sock.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The method's result. Raises what the daemon raised, or DaemonError if it broke off."""
        return self.follow(method, params, lambda _: None)

    def follow(
        self, method: str, params: dict[str, Any], on_progress: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """As call(); on_progress gets the parameters of each notification that comes before the answer."""
        self._id += 1
        request = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        try:
            # One that refuses us has answered before we speak, and hung up.
            with contextlib.suppress(BrokenPipeError):
                self._sock.sendall(json.dumps(request).encode() + b"\n")
            while "method" in (answer := self._parse(method, self._file.readline())):
                on_progress(answer["params"])
        except TimeoutError:
            raise TimeoutExpired(
                f"vptd did not answer {method} in {self._timeout:.0f} s", hint=_log_hint(self._path)
            ) from None
        except OSError as error:
            raise self._broke_off(method, f": {error.strerror}") from None
        if "error" in answer:
            raise self._error(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _broke_off(self, method: str, why: str = "") -> DaemonError:
        return DaemonError(
            f"vptd broke off during {method}{why}", hint=_log_hint(self._path), code="broke-off"
        )

    def _parse(self, method: str, line: bytes) -> dict[str, Any]:
        if not line.endswith(b"\n"):
            raise self._broke_off(method)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise DaemonError(
                f"what listens on {self._path} is no vptd", hint=f"see which: ss -xlp | grep {self._path}"
            ) from None
        return answer

    def _error(self, wire: dict[str, Any]) -> VptError:
        data = wire.get("data") or {}
        hint = {"hint": self._shorter(data["hint"])} if data.get("hint") else {}
        return from_wire({"code": data.get("code", "error"), "message": wire["message"], **hint})

    def _shorter(self, hint: str) -> str:
        """Without the option that the commands in it can do without where we are."""
        runtime = os.path.dirname(self._path)
        return hint.replace(whole_command(runtime, ""), command(runtime, ""))


def _connect_error(path: str, error: OSError) -> VptError:
    if isinstance(error, FileNotFoundError | NotADirectoryError | ConnectionRefusedError):
        return not_running(os.path.dirname(path), f"nothing listens on {path}")
    if isinstance(error, PermissionError):
        return MissingError(
            f"no permission to use {path}", hint="run as root, or join the group that ls -l shows"
        )
    return DaemonError(f"can't connect to {path}: {error.strerror or error}", hint=_log_hint(path))


def _log_hint(path: str) -> str:
    return f"see the end of {os.path.join(os.path.dirname(path), 'vptd.log')}"
