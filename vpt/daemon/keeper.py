# SPDX-License-Identifier: BSD-2-Clause
"""The keeper: a small process that holds guests' memory and doorbells, so that vptd may die and come back.

QEMU's ivshmem can't reconnect: whoever serves its socket must outlive the virtual machine. The keeper does
nothing else. It never looks at a ring, and imports the standard library only. There is one per runtime dir,
started by vptd when the first ring port is made.

    SOCK_SEQPACKET at keeper.sock, JSON, one request per message, answered in order:
        {"op": "hello", "version": 1}             {"ok": true, "version": 1, "pid": 1234}
        {"op": "put", "record": {...}} + fds      {"ok": true}
        {"op": "fetch", "name": "vm1"}            {"ok": true, "record": {...}} + fds, or "record": null
        {"op": "drop", "name": "vm1"}             {"ok": true}
        {"op": "list", "after": ""}               {"ok": true, "ports": [{"name":, "peer":,
                                                  "second_peers":}, ...]}, until the answer is empty
        {"op": "stop"}                            {"ok": true}, and it ends
    an error: {"ok": false, "error": {"code", "message", "hint"}}
    unasked:  {"event": "peer", "name": "vm1", "peer": {"pid":, "uid":, "gid":} or null, "second_peers": 0}

It ends when told to, and when neither a vptd nor a peer has been connected for a while.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpt.daemon.aio import receive, send
from vpt.daemon.arguments import seconds
from vpt.daemon.faults import Faults
from vpt.daemon.runtime import Lock, RuntimePaths
from vpt.daemon.shelf import Record, Shelf
from vpt.daemon.sockets import (
    MAX_FDS,
    Listener,
    PeerCredentials,
    close_fds,
    listen_unix,
    peer_credentials,
)
from vpt.daemon.transports.peer import Bundle
from vpt.errors import ConflictError, UsageError, VptError

__all__ = ["MAX_MESSAGE", "VERSION", "Keeper", "main", "peer_to_wire"]

VERSION = 1
MAX_MESSAGE = 64 << 10
_PAGE = 100

_log = logging.getLogger("vpt.keeper")


def peer_to_wire(peer: PeerCredentials | None) -> dict[str, int] | None:
    return {"pid": peer.pid, "uid": peer.uid, "gid": peer.gid} if peer else None


@dataclass(slots=True)
class _Answer:
    """What goes back, and the fds, the shelf's own, that go with it."""

    body: dict[str, Any]
    fds: Sequence[int] = ()


class Keeper:
    """A shelf behind a socket. linger_s: how long to stay when nobody is connected."""

    def __init__(self, listener: Listener, linger_s: float) -> None:
        self._listener = listener
        self._linger_s = linger_s
        self._shelf = Shelf(_log, self._peer_changed)
        self._client: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None
        self._told_to_stop = asyncio.Event()
        self._ops = {
            "hello": self._hello,
            "put": self._put,
            "fetch": self._fetch,
            "drop": self._drop,
            "list": self._list,
            "stop": self._stop,
        }

    def stop(self) -> None:
        self._told_to_stop.set()

    async def run(self) -> None:
        """Serve until told to stop, or left alone for long enough."""
        accepting = asyncio.create_task(self._accept_all())
        idle = asyncio.create_task(self._watch_idleness())
        try:
            await self._told_to_stop.wait()
        finally:
            for task in (accepting, idle, *([self._serving] if self._serving else [])):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self._shelf.close()
            self._listener.close()

    async def _watch_idleness(self) -> None:
        since = time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, self._linger_s / 4))
            now = time.monotonic()
            if self._client is not None or self._shelf.in_use:
                since = now
            elif now - since >= self._linger_s:
                _log.info("nobody has been connected for %.0f s: ending", self._linger_s)
                self.stop()
                return

    async def _accept_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                conn, _ = await loop.sock_accept(self._listener.sock)
            except OSError as error:
                _log.warning("can't accept vptd: %s", error.strerror)
                await asyncio.sleep(1)
                continue
            peer = peer_credentials(conn)
            if not peer.may_control(os.geteuid(), None):
                _log.warning("refused a connection: pid=%d uid=%d", peer.pid, peer.uid)
                conn.close()
                continue
            # The latest wins: vptd holds a lock, so an older connection is a dead vptd's.
            if self._serving is not None:
                self._serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._serving
            self._client = conn
            self._serving = asyncio.create_task(self._serve(conn))

    async def _serve(self, conn: socket.socket) -> None:
        try:
            while True:
                data, fds = await receive(conn, MAX_MESSAGE, MAX_FDS)
                if not data:
                    return
                answer = await self._handle(data, fds)
                await send(conn, json.dumps(answer.body).encode(), answer.fds)
        except (OSError, VptError) as error:
            _log.warning("connection to vptd lost: %s", error)
        finally:
            self._client = None
            conn.close()

    async def _handle(self, data: bytes, fds: list[int]) -> _Answer:
        """Carry out one request. The fds that came with it are closed: who wants them duplicates them."""
        try:
            request = json.loads(data)
            op = self._ops.get(str(request.get("op"))) if isinstance(request, dict) else None
            if op is None:
                raise UsageError("not a request that this keeper knows")
            answer = await op(request, fds)
            answer.body = {"ok": True, **answer.body}
            return answer
        except VptError as error:
            return _Answer({"ok": False, "error": error.to_wire()})
        except (ValueError, RecursionError, OSError) as error:
            return _Answer({"ok": False, "error": ConflictError(str(error)).to_wire()})
        finally:
            close_fds(fds)

    async def _hello(self, request: dict[str, Any], _fds: list[int]) -> _Answer:
        if request.get("version") != VERSION:
            raise ConflictError(
                f"the keeper (process {os.getpid()}) speaks version {VERSION}, not {request.get('version')}",
                hint="it is of another vpt; when its guests can be shut down, end it: "
                f"kill {os.getpid()}, and start vptd again",
            )
        return _Answer({"version": VERSION, "pid": os.getpid()})

    async def _put(self, request: dict[str, Any], fds: list[int]) -> _Answer:
        if not isinstance(request.get("record"), dict):
            raise UsageError("put: no record")
        await self._shelf.put(Record.from_wire(request["record"]), Bundle.from_fds(fds))
        return _Answer({})

    async def _fetch(self, request: dict[str, Any], _fds: list[int]) -> _Answer:
        kept = self._shelf.find(str(request.get("name")))
        if kept is None:
            return _Answer({"record": None})
        record, bundle = kept
        return _Answer({"record": record.to_wire()}, bundle.fds())

    async def _drop(self, request: dict[str, Any], _fds: list[int]) -> _Answer:
        await self._shelf.drop(str(request.get("name")))
        return _Answer({})

    async def _list(self, request: dict[str, Any], _fds: list[int]) -> _Answer:
        after = str(request.get("after", ""))
        names = [name for name in await self._shelf.names() if name > after][:_PAGE]
        return _Answer({"ports": [self._peers(name) for name in names]})

    async def _stop(self, _request: dict[str, Any], _fds: list[int]) -> _Answer:
        # After the answer has gone out.
        asyncio.get_running_loop().call_later(0.05, self.stop)
        return _Answer({})

    def _peers(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "peer": peer_to_wire(self._shelf.peer(name)),
            "second_peers": self._shelf.second_peers(name),
        }

    def _peer_changed(self, name: str) -> None:
        if self._client is None:
            return
        event = {"event": "peer", **self._peers(name)}
        # A vptd that does not read asks for the list when it comes to.
        with contextlib.suppress(OSError):
            self._client.send(json.dumps(event).encode(), socket.MSG_NOSIGNAL)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m vpt.daemon.keeper`.

    Writes "ready" to --ready-fd when it can be connected to.
    """
    parser = argparse.ArgumentParser(
        prog="vpt-keeper", description="Keeps guests' memory while vptd is away."
    )
    parser.add_argument("--runtime-dir", required=True, type=Path)
    parser.add_argument("--linger", type=seconds, default=60.0, metavar="SECONDS")
    parser.add_argument("--ready-fd", type=int, metavar="FD")
    parser.add_argument("--detach", action="store_true", help="become nobody's child")
    options = parser.parse_args(argv)
    if options.detach and os.fork():
        # Not exit(): what is buffered belongs to the child.
        os._exit(0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s keeper %(message)s")
    os.chdir("/")
    _raise_fd_limit()
    paths = RuntimePaths(options.runtime_dir, options.runtime_dir)
    try:
        lock = Lock(paths.keeper_lock, "a keeper")
        listener = listen_unix(paths.keeper_socket, kind=socket.SOCK_SEQPACKET, replace_stale=True)
    except (VptError, OSError) as error:
        print(f"vpt-keeper: {error}", file=sys.stderr)
        return 1
    if options.ready_fd is not None:
        os.write(options.ready_fd, b"ready")
        os.close(options.ready_fd)
    asyncio.run(_run(listener, options.linger))
    lock.release()
    return 0


def _raise_fd_limit() -> None:
    """A port of 32 queue pairs needs 131 descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(listener: Listener, linger_s: float) -> None:
    keeper = Keeper(listener, linger_s)
    Faults(_log).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, keeper.stop)
    await keeper.run()


if __name__ == "__main__":
    sys.exit(main())
