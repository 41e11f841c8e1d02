# SPDX-License-Identifier: BSD-2-Clause
"""JSON-RPC 2.0 over a unix socket, one object per line.

A connection's requests are served in order, the next one read only after the last answer has gone out: a
client that does not read stops itself and nobody else, and what a client can have pending is one request and
one socket buffer. Batches are refused, requests are bounded in size, connections in number.

    -32700  not JSON                    data.code "usage"
    -32600  not a request               data.code "usage"
    -32601  no such method              data.code "usage"
    -32602  parameters                  data.code "usage"
    -32603  vptd's own fault            data.code "internal"
    -32000  everything of vpt.errors    data.code as there
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from vpt.daemon.models import explain
from vpt.daemon.ratelimit import RateLimit
from vpt.daemon.sockets import Listener, peer_credentials
from vpt.errors import VptError

__all__ = ["MAX_REQUEST", "Method", "RpcServer", "dispatch", "notify"]

# Bytes of a request line. The longest is an apply of thousands of ports, a few hundred bytes each.
MAX_REQUEST = 2 << 20
_MAX_CLIENTS = 64
# How long a client may leave an answer unread.
_SEND_TIMEOUT_S = 30.0

_PARSE_ERROR = -32700
_INVALID_REQUEST = -32600
_NO_METHOD = -32601
_INVALID_PARAMS = -32602
_INTERNAL = -32603
_APPLICATION = -32000

# Whom the request that is being served came from.
_client: ContextVar[tuple[asyncio.StreamReader, asyncio.StreamWriter] | None] = ContextVar(
    "client", default=None
)


async def notify(method: str, **params: Any) -> None:
    """Tell whoever sent the request that is being served, before it is answered; nobody if it came otherwise.

    ConnectionAbortedError if they have hung up. Lets others have their turn.
    """
    await asyncio.sleep(0)
    client = _client.get()
    if client is None:
        return
    reader, writer = client
    if reader.at_eof():
        raise ConnectionAbortedError("the client hung up")
    await _answer(writer, json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode() + b"\n")


Handler = Callable[[Any], Awaitable[BaseModel]]


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the method table."""

    name: str
    params: type[BaseModel]
    result: type[BaseModel]
    doc: str
    handler: Handler


class _Refusal(Exception):  # noqa: N818 - it is the answer, not a fault
    """A request that gets an error object of the protocol itself."""

    def __init__(self, number: int, message: str, hint: str, code: str = "usage") -> None:
        super().__init__(message)
        self.error = {"code": number, "message": message, "data": {"code": code, "hint": hint}}


async def dispatch(
    methods: Mapping[str, Method], line: bytes, log: logging.Logger, shown_by: str
) -> bytes | None:
    """The answer to one request line, or None for a notification. shown_by: what lists the methods."""
    request_id: Any = None
    wants_answer = True
    try:
        request = _parse(line)
        request_id = _request_id(request)
        method, params = _select(methods, request, shown_by)
        wants_answer = "id" in request
        result = await _call(method, params, log, shown_by)
        answer: dict[str, Any] = {"result": result.model_dump(mode="json")}
    except _Refusal as refusal:
        answer = {"error": refusal.error}
    except VptError as error:
        answer = {"error": {"code": _APPLICATION, "message": error.message, "data": _data(error)}}
    if not wants_answer:
        return None
    return json.dumps({"jsonrpc": "2.0", "id": request_id, **answer}, separators=(",", ":")).encode() + b"\n"


def _data(error: VptError) -> dict[str, Any]:
    return {"code": error.code, "hint": error.hint}


def _parse(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _Refusal(_PARSE_ERROR, f"not JSON: {why}", "send one JSON object per line, in UTF-8") from None
    if isinstance(request, list):
        raise _Refusal(_INVALID_REQUEST, "batches are not supported", "send one JSON object per line")
    if not isinstance(request, dict):
        raise _Refusal(
            _INVALID_REQUEST, "a request is a JSON object", 'such as {"jsonrpc":"2.0","id":1,"method":"list"}'
        )
    return request


def _request_id(request: dict[str, Any]) -> int | float | str | None:
    value = request.get("id")
    if value is None or (isinstance(value, int | float | str) and not isinstance(value, bool)):
        return value
    raise _Refusal(_INVALID_REQUEST, "id must be a number, a string or null", "number your requests")


def _select(
    methods: Mapping[str, Method], request: dict[str, Any], shown_by: str
) -> tuple[Method, dict[str, Any]]:
    if request.get("jsonrpc") != "2.0":
        raise _Refusal(_INVALID_REQUEST, 'a request says "jsonrpc": "2.0"', "vptd speaks JSON-RPC 2.0 only")
    if unknown := set(request) - {"jsonrpc", "id", "method", "params"}:
        raise _Refusal(
            _INVALID_REQUEST, f"unknown members: {', '.join(sorted(map(repr, unknown)))}", "see JSON-RPC 2.0"
        )
    name = request.get("method")
    if not isinstance(name, str):
        raise _Refusal(_INVALID_REQUEST, "method must be a string", f"see them with: {shown_by}")
    method = methods.get(name)
    if method is None:
        raise _Refusal(_NO_METHOD, f"no method {name[:64]!r}", f"see them with: {shown_by}")
    params = request.get("params", {})
    if not isinstance(params, dict):
        raise _Refusal(
            _INVALID_PARAMS, f"{name}: params must be an object", "parameters have names here, not positions"
        )
    return method, params


async def _call(method: Method, params: dict[str, Any], log: logging.Logger, shown_by: str) -> BaseModel:
    try:
        checked = method.params.model_validate(params)
    except ValidationError as error:
        hint = f"{shown_by} {method.name} shows what it takes"
        raise _Refusal(_INVALID_PARAMS, explain(error), hint) from None
    try:
        return await method.handler(checked)
    except (VptError, ConnectionError):
        raise
    except Exception:
        log.exception("method=%s failed unexpectedly", method.name)
        hint = "this is a fault of vptd; the reason is in its log"
        raise _Refusal(_INTERNAL, f"{method.name} failed inside vptd", hint, "internal") from None


class RpcServer:
    """Serves a method table on a listening socket to those who may control us. shown_by: as of dispatch()."""

    def __init__(self, methods: Mapping[str, Method], log: logging.Logger, *, shown_by: str) -> None:
        self._methods = methods
        self._log = log
        self._shown_by = shown_by
        self._clients: set[asyncio.Task[None]] = set()
        self._strangers = RateLimit()
        self._listener: Listener | None = None
        self._server: asyncio.Server | None = None

    @property
    def clients(self) -> int:
        return len(self._clients)

    async def start(self, listener: Listener) -> None:
        """Serve; the listener is closed by stop()."""
        self._listener = listener
        self._server = await asyncio.start_unix_server(self._accepted, sock=listener.sock, limit=MAX_REQUEST)

    async def stop(self) -> None:
        """Hang up on everybody but the caller: a request that stops the server is still answered."""
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            self._listener.close()
        others = [task for task in self._clients if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        refusal = self._refusal(writer)
        if refusal is None:
            self._clients.add(task)
        try:
            if refusal is not None:
                await _answer(writer, refusal)
            else:
                await self._serve(reader, writer)
        except (ConnectionError, TimeoutError):
            pass
        except asyncio.CancelledError:
            # Only stop() cancels; what is left to do is to close.
            pass
        finally:
            self._clients.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    def _refusal(self, writer: asyncio.StreamWriter) -> bytes | None:
        """Why this connection may not talk to us, as an answer; None if it may."""
        peer = peer_credentials(writer.get_extra_info("socket"))
        assert self._listener is not None
        if not peer.may_control(os.geteuid(), self._listener.group):
            if self._strangers.admit() is not None:
                self._log.warning("refused a control connection pid=%d uid=%d", peer.pid, peer.uid)
            return _refuse(
                f"user {peer.uid} may not control this vptd",
                "run as root, or join the socket's group",
                "denied",
            )
        if len(self._clients) >= _MAX_CLIENTS:
            return _refuse(
                f"{_MAX_CLIENTS} clients are connected already", "close some, then try again", "busy"
            )
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _client.set((reader, writer))
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                await _answer(
                    writer, _refuse(f"request longer than {MAX_REQUEST} bytes", "send one object per line")
                )
                return
            answer = await dispatch(self._methods, line, self._log, self._shown_by)
            if answer is not None:
                await _answer(writer, answer)


def _refuse(message: str, hint: str, code: str = "usage") -> bytes:
    refusal = _Refusal(_INVALID_REQUEST, message, hint, code)
    return json.dumps({"jsonrpc": "2.0", "id": None, "error": refusal.error}).encode() + b"\n"


async def _answer(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    async with asyncio.timeout(_SEND_TIMEOUT_S):
        await writer.drain()
