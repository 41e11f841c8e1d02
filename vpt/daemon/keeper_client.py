# SPDX-License-Identifier: BSD-2-Clause
"""vptd's side of the keeper: find it or start it, ask it, notice its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vpt.daemon.aio import receive, send
from vpt.daemon.keeper import MAX_MESSAGE, VERSION
from vpt.daemon.runtime import RuntimePaths
from vpt.daemon.shelf import Record
from vpt.daemon.sockets import MAX_FDS, PeerCredentials, close_fds, unix_path
from vpt.daemon.transports.peer import Bundle
from vpt.errors import DaemonError, TimeoutExpired, VptError, from_wire

__all__ = ["KeeperClient"]

_START_TIMEOUT_S = 15.0
_ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class _Peers:
    """Of one port: who is connected, and how many were refused meanwhile."""

    peer: PeerCredentials | None = None
    refused: int = 0


class KeeperClient:
    """A Holder whose shelf is in the keeper.

    on_change(name): a peer has come or gone. on_lost(): a keeper that had answered is gone; call
    connect() and put everything again.
    """

    def __init__(
        self,
        paths: RuntimePaths,
        *,
        linger_s: float,
        log: logging.Logger,
        on_change: Callable[[str], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._paths = paths
        self._linger_s = linger_s
        self._log = log
        self._on_change = on_change
        self._on_lost = on_lost
        self._sock: socket.socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[tuple[dict[str, Any], list[int]]] | None = None
        self._turn = asyncio.Lock()
        self._peers: dict[str, _Peers] = {}
        self.pid: int | None = None

    @property
    def connected(self) -> bool:
        return self._sock is not None

    @property
    def held(self) -> int:
        """How many ports the keeper has taken over."""
        return len(self._peers)

    async def connect(self) -> None:
        """Connect to the keeper of our runtime dir, and start one if there is none."""
        if not await self._find():
            await asyncio.to_thread(_spawn, self._paths, self._linger_s)
            sock = _try_connect(self._paths)
            if sock is None:
                raise DaemonError(
                    "the keeper ended as soon as it was started", hint=f"see {self._paths.keeper_log}"
                )
            await self._greet(sock)
        await self.names()

    async def _find(self) -> bool:
        """Whether there was a keeper already, and it answers."""
        sock = _try_connect(self._paths)
        if sock is None:
            return False
        try:
            await self._greet(sock)
        except DaemonError:
            # One that is ending: the kernel closes its listening socket a moment after its connections.
            return False
        return True

    async def _greet(self, sock: socket.socket) -> None:
        """Make `sock` ours, which speaks to a keeper, once that has answered."""
        self._sock = sock
        self._reader = asyncio.create_task(self._read_all(sock))
        try:
            hello, _ = await self._ask({"op": "hello", "version": VERSION})
        except BaseException:
            await self.close()
            raise
        self.pid = hello["pid"]

    async def close(self) -> None:
        """Hang up. The keeper stays."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        self._drop_connection()

    async def stop_keeper(self) -> None:
        """Tell the keeper to let go of everything and end."""
        if self._sock is not None:
            await self._ask({"op": "stop"})
        await self.close()

    async def put(self, record: Record, bundle: Bundle) -> None:
        await self._ask({"op": "put", "record": record.to_wire()}, bundle.fds())
        self._peers.setdefault(record.name, _Peers())

    async def fetch(self, name: str) -> tuple[Record, Bundle] | None:
        answer, fds = await self._ask({"op": "fetch", "name": name})
        if answer["record"] is None:
            close_fds(fds)
            return None
        try:
            return Record.from_wire(answer["record"]), Bundle.from_fds(fds)
        except BaseException:
            close_fds(fds)
            raise

    async def drop(self, name: str) -> None:
        await self._ask({"op": "drop", "name": name})
        self._peers.pop(name, None)

    async def names(self) -> list[str]:
        names: list[str] = []
        while True:
            answer, _ = await self._ask({"op": "list", "after": names[-1] if names else ""})
            if not answer["ports"]:
                return names
            for port in answer["ports"]:
                names.append(port["name"])
                self._peers[port["name"]] = _peers(port)

    def peer(self, name: str) -> PeerCredentials | None:
        return self._peers.get(name, _Peers()).peer

    def second_peers(self, name: str) -> int:
        return self._peers.get(name, _Peers()).refused

    async def _ask(
        self, request: dict[str, Any], fds: Sequence[int] = ()
    ) -> tuple[dict[str, Any], list[int]]:
        async with self._turn:
            if self._sock is None:
                raise DaemonError(
                    "the keeper is not there", hint=f"vptd starts it again soon; see {self._paths.keeper_log}"
                )
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    await send(self._sock, json.dumps(request).encode(), fds)
                    answer, received = await self._waiting
            except TimeoutError:
                # As if it had hung up: the reader notices, and whoever depends on it is told.
                self._sock.shutdown(socket.SHUT_RDWR)
                raise TimeoutExpired(
                    f"the keeper did not answer {request['op']!r} in {_ANSWER_TIMEOUT_S:.0f} s"
                ) from None
            except OSError as error:
                raise DaemonError(f"the keeper is gone: {error.strerror}", hint="try again") from None
            finally:
                self._waiting = None
        if not answer.get("ok"):
            close_fds(received)
            raise from_wire(answer.get("error", {}))
        return answer, received

    async def _read_all(self, sock: socket.socket) -> None:
        """Receive until the keeper is gone."""
        try:
            while True:
                data, fds = await receive(sock, MAX_MESSAGE, MAX_FDS)
                if not data:
                    break
                self._received(json.loads(data), fds)
        except (OSError, ValueError, VptError) as error:
            self._log.warning("keeper: %s", error)
        had_answered = self.pid is not None
        self._drop_connection()
        if had_answered:
            self._on_lost()

    def _received(self, message: dict[str, Any], fds: list[int]) -> None:
        if message.get("event") == "peer":
            name, now = message["name"], _peers(message)
            changed = now.peer != self.peer(name)
            self._peers[name] = now
            if changed:
                self._on_change(name)
        elif self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((message, fds))
        else:
            close_fds(fds)

    def _drop_connection(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        # Its ports are nobody's now, and not the next keeper's before that one has said so.
        self.pid = None
        self._peers = {}
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(
                DaemonError("the keeper hung up", hint=f"see {self._paths.keeper_log}")
            )


def _peers(wire: dict[str, Any]) -> _Peers:
    peer = wire["peer"]
    refused = wire.get("second_peers", 0)  # a keeper that is older than this vptd does not count them
    return _Peers(PeerCredentials(peer["pid"], peer["uid"], peer["gid"]) if peer else None, refused)


def _try_connect(paths: RuntimePaths) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.connect(unix_path(paths.keeper_socket))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _spawn(paths: RuntimePaths, linger_s: float) -> None:
    """Start a keeper in a session of its own, nobody's child, and wait until it can be connected to."""
    ready, theirs = os.pipe()
    try:
        with paths.keeper_log.open("wb") as log:
            argv = [
                sys.executable,
                "-m",
                "vpt.daemon.keeper",
                "--detach",
                "--runtime-dir",
                str(paths.runtime),
            ]
            subprocess.run(
                [*argv, "--linger", str(linger_s), "--ready-fd", str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs,),
                start_new_session=True,
                timeout=_START_TIMEOUT_S,
                check=False,
            )
        os.close(theirs)
        theirs = -1
        readable, _, _ = select.select([ready], [], [], _START_TIMEOUT_S)
        if readable and os.read(ready, 5) == b"ready":
            return
    finally:
        close_fds([ready, theirs])
    said = paths.keeper_log.read_text(errors="replace").strip().splitlines()
    raise DaemonError(f"the keeper did not start: {said[-1] if said else ''}", hint=f"see {paths.keeper_log}")
