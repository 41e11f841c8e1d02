# SPDX-License-Identifier: BSD-2-Clause
"""vhost-user transport: the socket of one port, to which one front-end connects at a time.

vptd listens and QEMU is the client, so that either can restart. Everything runs in the event loop of the
caller and nothing blocks it: the socket is non-blocking, a message has a time to be completed in, and while a
reply cannot be written nothing more is read, so a peer that never reads holds one reply of memory until its
time is up.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vpt.daemon.descriptors import Closer, keep_urgent_inline
from vpt.daemon.ratelimit import PortLog
from vpt.daemon.sockets import Listener, listen_unix, peer_credentials
from vpt.daemon.transports.base import Settings
from vpt.daemon.transports.vhost import Memory, Negotiated, Reply, Session, process_of
from vpt.daemon.watched import WatchedListener
from vpt.dataplane import EventType
from vpt.vhost_user import (
    Decoder,
    Message,
    Rule,
    RuleError,
    VirtioFeature,
    close_fds,
    encode,
    feature_names,
    receive,
    send_some,
)

if TYPE_CHECKING:
    from vpt.daemon.sockets import PeerCredentials
    from vpt.dataplane import Event, Port

# How often to look whether what front-ends sent has been closed, where too much of it is not.
_CLOSER_POLL_S = 0.5
_READS_PER_WAKE = 64  # then other sockets get their turn


class _Connection:
    """One front-end's socket: bytes in, bytes out, two time limits."""

    def __init__(
        self, owner: VhostUserTransport, sock: socket.socket, session: Session, timeout_s: float
    ) -> None:
        self._owner = owner
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(discard=owner.closer.close)
        self._out = bytearray()
        self._out_fds: list[int] = []  # go with the first byte of it
        self._stalled = False  # a reply waits for the peer to read
        self._closed = False
        self._timeout_s = timeout_s
        self._deadline: asyncio.TimerHandle | None = None
        self.session = session
        self.peer = peer_credentials(sock)
        self._loop.add_reader(sock, self._readable)

    def close(self) -> None:
        """Stop listening to it and free all it holds."""
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._set_deadline(None)
        self._owner.closer.hang_up(self._sock)
        self._decoder.close()
        close_fds(self._out_fds)
        self.session.close()

    def _heard(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock, self._readable)

    def _readable(self) -> None:
        if self.session.hear_first(self._heard):
            self._loop.remove_reader(self._sock)
            return
        try:
            for _ in range(_READS_PER_WAKE):
                if self._out or not self._read_some():
                    break
        except BlockingIOError:
            pass
        except RuleError as error:
            self._owner.drop(self, error.rule, error.detail)
        except ConnectionError as error:
            self._owner.drop(self, None, error.strerror or "connection lost")
        except Exception:
            self._owner.crashed(self)

    def _read_some(self) -> bool:
        """Read once and act on what is complete; False at the end of the stream."""
        messages = receive(self._sock, self._decoder)
        if messages is None:
            if self._decoder.mid_message:
                raise RuleError(Rule.CUT_MESSAGE, "closed in the middle of a message")
            self._owner.drop(self, None, "closed by the front-end")
            return False
        for message in messages:
            with message:
                self._answer(message, self.session.handle(message))
        if (problem := self._owner.closer.problem) is not None:
            raise RuleError(Rule.UNCLOSED_FDS, problem)
        if messages:
            self._set_deadline(None)
            self._flush()
        elif self._deadline is None:
            self._set_deadline(Rule.MESSAGE_TIMEOUT)
        return True

    def _answer(self, message: Message, reply: Reply | None) -> None:
        """Queue the reply. There is one at a time: nothing is read while one waits."""
        if reply is not None:
            if reply.refused is not None:
                self._owner.refused(reply.refused)
            self._out += encode(message.request, reply.payload, reply=True)
            self._out_fds, reply.fds = reply.fds, []

    def _flush(self) -> None:
        """Send what there is of the reply. Nothing more is read until all of it is out."""
        if self._out and send_some(self._sock, self._out, self._out_fds):
            close_fds(self._out_fds)
            self._out_fds = []
        if bool(self._out) == self._stalled:
            return
        self._stalled = not self._stalled
        if self._stalled:
            self._loop.remove_reader(self._sock)
            self._loop.add_writer(self._sock, self._writable)
            self._set_deadline(Rule.REPLY_TIMEOUT)
        else:
            self._loop.remove_writer(self._sock)
            self._loop.add_reader(self._sock, self._readable)
            self._set_deadline(None)

    def _writable(self) -> None:
        try:
            self._flush()
        except ConnectionError as error:
            self._owner.drop(self, None, error.strerror or "connection lost")

    def _set_deadline(self, rule: Rule | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = (
            self._loop.call_later(
                self._timeout_s, self._owner.drop, self, rule, f"{self._timeout_s} s are over"
            )
            if rule
            else None
        )


class VhostUserTransport:
    """The socket of one vhost-user port.

    port: of kind vhost-user, with at least max_pairs queue pairs; nobody else may use its vhost functions.
    socket_path: where to listen; replace_stale: a socket there that nobody listens on is our own. log:
    rate-limited, as PortLog is, since peers can cause its lines. settings: those of the port that may change;
    mac: what the configuration space says, to front-ends that have none of their own. in_band: offer
    in-band notifications, which QEMU accepts without having them.
    message_timeout_s: how long a message may take to arrive, or a reply to be taken. memory: where what was
    negotiated is remembered, none: nowhere. watch_s: how often to look after the socket's file. calm_s: how
    long nothing has to change before a page for kicks is given.

    All methods are for the event loop's thread. Embeddable: needs no daemon, only someone who passes the
    engine's events of this port to on_event().
    """

    def __init__(
        self,
        port: Port,
        *,
        socket_path: str | os.PathLike[str],
        log: PortLog,
        max_pairs: int,
        settings: Settings,
        mac: bytes | None = None,
        in_band: bool = False,
        socket_mode: int = 0o660,
        group: int | None = None,
        replace_stale: bool = True,
        message_timeout_s: float = 10.0,
        memory: Memory | None = None,
        watch_s: float = 2.0,
        calm_s: float = 1.0,
    ) -> None:
        self._port = port
        self._path = os.fspath(socket_path)
        self._log = log
        self._max_pairs = max_pairs
        self._mac = mac
        self._settings = settings
        self._in_band = in_band
        self._mode = socket_mode
        self._group = group
        self._replace_stale = replace_stale
        self._timeout_s = message_timeout_s
        self._memory = memory
        self._calm_s = calm_s
        self._last = memory.recall() if memory is not None else None
        self.closer = Closer(log)
        self._socket = WatchedListener(self._listen, self._accept, self.closer.hang_up, log, every_s=watch_s)
        self._client: _Connection | None = None
        self._problem: str | None = None  # why the front-end that wants to come back can't
        self._counters: Counter[str] = Counter()

    async def start(self) -> None:
        """Listen. Raises VptError if the path cannot be listened on."""
        self._socket.start()

    async def stop(self) -> None:
        """Close the connection and the socket, and remove its file if it is still ours."""
        if self._client is not None:
            self.drop(self._client, None, "port is being closed")
        self._socket.stop()

    def _listen(self) -> Listener:
        return listen_unix(self._path, mode=self._mode, group=self._group, replace_stale=self._replace_stale)

    def on_event(self, event: Event) -> None:
        """Take note of an event of this port: a broken one loses its front-end, which may come back."""
        reason = self._port.state().reason
        # Without a reason, a reset has overtaken the event: it was about rings that are gone.
        if event.type != EventType.BROKEN or not reason or self._client is None:
            return
        self._counters["broken"] += 1
        ring = 2 * event.queue + (not event.rx)
        self._client.session.tell_broken(ring)
        self._end(self._client)
        self._log.warning(
            "port broken, front-end dropped: %s, ring %d, detail %#x",
            reason.label,
            ring,
            event.detail,
        )

    def adapt(self, settings: Settings) -> None:
        """Settings have changed: a front-end that has something to do with them is told."""
        self._settings = settings
        if self._client is not None:
            self._client.session.adapt(settings)

    @property
    def peer(self) -> PeerCredentials | None:
        """The front-end."""
        return None if self._client is None else self._client.peer

    def describe(self) -> dict[str, Any]:
        """State and counters, ready for JSON."""
        client = self._client
        return {
            "socket": self._path,
            "problem": self._problem or self.closer.problem or self._socket.problem,
            "connected": client is not None,
            "session": None if client is None else client.session.describe(),
            "counters": dict(sorted((self._counters | self._counted_elsewhere()).items())),
        }

    def _counted_elsewhere(self) -> dict[str, int]:
        return {"sockets_renewed": self._socket.renewed, "slow_descriptors": self.closer.handed_over}

    def drop(self, client: _Connection, rule: Rule | None, detail: str) -> None:
        """End a connection, by the peer's fault if a rule is given; the port is ready for the next one."""
        if client is not self._client:
            return
        self._end(client)
        if rule is not None:
            self._counters[rule] += 1
            self._counters["protocol_errors"] += 1
            self._log.warning("front-end dropped: %s: %s", rule, detail)
        else:
            self._counters["disconnects"] += 1
            self._log.info("front-end disconnected: %s", detail)

    def refused(self, error: RuleError) -> None:
        """Take note of a negative acknowledgement; the session has counted it."""
        self._log.warning("message refused: %s: %s", error.rule, error.detail)

    def crashed(self, client: _Connection) -> None:
        """A handler failed in a way that nobody foresaw: a traceback, and the port stays usable."""
        self._log.exception("internal error, front-end dropped")
        self._counters["internal_errors"] += 1
        if client is self._client:
            self._end(client)

    def _end(self, client: _Connection) -> None:
        self._client = None
        self._port.vhost_reset()  # lets go of the descriptors before the session does
        # What is at its addresses from now on is elsewhere, if anywhere: as with a cable that is pulled out.
        self._port.forget()
        client.close()

    def _accept(self, listener: socket.socket) -> None:
        if self.closer.full:
            self._log.warning("no front-end is accepted: %s", self.closer.problem)
            self._socket.pause(_CLOSER_POLL_S)
            return
        try:
            sock, _ = listener.accept()
        except OSError as error:
            self._counters["accept_errors"] += 1
            self._log.warning("cannot accept: %s", error.strerror)
            return
        if self._client is not None:
            self.closer.hang_up(sock)
            self._counters["second_clients"] += 1
            self._log.warning("second front-end refused: one is connected")
            return
        sock.setblocking(False)
        keep_urgent_inline(sock)
        process = process_of(peer_credentials(sock).pid)
        session = Session(
            self._port,
            max_pairs=self._max_pairs,
            settings=self._settings,
            mac=self._mac,
            in_band=self._in_band,
            counters=self._counters,
            closer=self.closer,
            on_features=lambda features: self._remember(process, features=features),
            pages_refused=self._known(process).pages_refused,
            on_pages_refused=lambda: self._pages_refused(process),
            on_rarp_dropped=self._rarp_dropped,
            calm_s=self._calm_s,
        )
        if self._lacks(process, session.offered):
            session.close()
            self.closer.hang_up(sock)
            return
        self._client = _Connection(self, sock, session, self._timeout_s)
        self._counters["connections"] += 1
        self._log.info("front-end connected: pid %d, uid %d", self._client.peer.pid, self._client.peer.uid)

    def _lacks(self, process: str | None, offered: int) -> bool:
        """Is this front-end's guest using features that are not offered any more? Then it is refused."""
        lost = self._known(process).features & ~offered
        self._problem = None
        if not lost:
            return False
        names = ", ".join(feature_names(lost, VirtioFeature))
        self._counters[Rule.FEATURES_LOST] += 1
        self._problem = f"the guest uses {names}, which this vptd does not offer"
        self._log.error(
            "front-end refused: %s (start the vptd again that it was connected to before, or restart the VM)",
            self._problem,
        )
        return True

    def _known(self, process: str | None) -> Negotiated:
        """What this process has negotiated before; nothing, if it is hidden or another one."""
        if process is not None and self._last is not None and self._last.process == process:
            return self._last
        return Negotiated(process or "")

    def _pages_refused(self, process: str | None) -> None:
        self._counters["pages_refused"] += 1
        self._log.info("the front-end has no place for a page; virtio-net-pci: page-per-vq=on")
        self._remember(process, pages_refused=True)

    def _rarp_dropped(self, mac: bytes) -> None:
        self._counters["rarp_dropped"] += 1
        self._log.warning(
            "SEND_RARP of %s dropped by the port's rules; the tx_drop_ counters of vpt stats say which",
            mac.hex(":"),
        )

    def _remember(self, process: str | None, **what: Any) -> None:
        now = replace(self._known(process), **what)
        if process is None or now == self._last:
            return
        self._last = now
        if self._memory is None:
            return
        try:
            self._memory.remember(now)
        except OSError as error:
            self._log.error("what was negotiated can't be remembered: %s", error.strerror)
