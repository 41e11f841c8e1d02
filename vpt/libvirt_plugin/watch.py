# SPDX-License-Identifier: BSD-2-Clause
"""Follow libvirt's domains: no port outlives the one it was made for, and no port is left unconnected.

Nothing is concluded from an event alone. It is a reason to look, as is a vptd or a libvirtd that comes back,
or a minute that has passed; and what was found wrong must have been so for a while, for an attach or a start
may be under way. So it does not matter what happened while nobody was watching.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from vpt.daemon.client import Client
from vpt.daemon.owners import domain_of
from vpt.daemon.runtime import Lock, RuntimePaths
from vpt.errors import ConflictError, DaemonError, NotFoundError, TimeoutExpired, VptError
from vpt.libvirt_plugin._connection import (
    NO_LIBVIRT,
    binding,
    open_libvirt,
    owner_of,
    translate,
    which,
)
from vpt.libvirt_plugin._domain import Target
from vpt.libvirt_plugin._turns import in_turn
from vpt.libvirt_plugin.metadata import Plug, plugs_in
from vpt.libvirt_plugin.reconnect import lost, reconnect
from vpt.libvirt_plugin.rules import gone_late, plugged_in

__all__ = ["Watch", "is_watched", "left_over"]

# Longer than QEMU waits before it connects again by itself, and than an attach takes between port and device.
_PATIENCE_S = 3.0
_LOOK_S = 60.0
_RETRY_S = 1.0

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Domain:
    """What a domain of libvirt's has of us: ports whose devices it has. owner: as Target.owner.

    late: a port of ours has gone since its detach was given up, and QEMU is to be mended.
    """

    name: str
    owner: str
    active: bool
    plugs: tuple[Plug, ...]
    late: bool = False


def left_over(ports: Iterable[dict[str, Any]], domains: Iterable[Domain], libvirt: str) -> list[str]:
    """Names of the ports that were made for a domain of this libvirt, and that no domain has any more.

    One whose domain runs is not for us to judge: a device may be on its way in or out.
    libvirt: as `which` calls it.
    """
    domains = list(domains)
    running = {domain.owner for domain in domains if domain.active}
    named = {plug.name for domain in domains for plug in domain.plugs}
    return [
        port["name"]
        for port in ports
        if (domain_of(port["owner"]) or ("",))[0] == libvirt
        and port["owner"] not in running
        and port["name"] not in named
    ]


class _Patience:
    """Which of the things that are wrong have been so for a while."""

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}

    def ripe(self, found: Iterable[K]) -> list[K]:
        now, found = time.monotonic(), list(found)
        self._since = {key: self._since.get(key, now) for key in found}
        return [key for key in found if now - self._since[key] >= _PATIENCE_S]

    @property
    def young(self) -> bool:
        """Is there something else that may soon have been so for a while?"""
        now = time.monotonic()
        return any(now - since < _PATIENCE_S for since in self._since.values())


class Watch:
    """Looks after the ports of one vptd that domains of one libvirt have.

    say: what is done, and what is in the way, a line each.
    """

    def __init__(self, paths: RuntimePaths, uri: str | None, say: Callable[[str], None]) -> None:
        self._paths = paths
        self._uri = uri
        self._say = say
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closed = ""
        self._trouble = ""
        self._vptd: Client | None = None
        self._left_over, self._lost = _Patience(), _Patience()

    def run(self, *, once: bool = False, ready: Callable[[], None] = lambda: None) -> None:
        """For ever; once: until all that is wrong now has been put right. May be interrupted anywhere.

        ready: called when libvirt's events are being followed, or libvirt is waited for. MissingError: no
        permission, or no binding.
        """
        lib = binding()
        try:
            while True:
                try:
                    with open_libvirt(self._uri) as connection, self._following(connection):
                        ready()
                        self._look_after(connection, once)
                except lib.libvirtError as error:
                    if once:
                        raise translate(error, "libvirt", "look at its domains", self._uri) from error
                    self._complain(f"libvirt is gone: {error}")
                except VptError as error:
                    if once or not (error.code == NO_LIBVIRT or isinstance(error, TimeoutExpired)):
                        raise
                    self._complain(error)
                    # If vptd did not answer in time: what it says then is no answer to the next question.
                    self._hang_up()
                    ready()
                if once:
                    return
                self._wait(_RETRY_S)
        finally:
            self._hang_up()
            os.close(self._bell)

    @contextmanager
    def _following(self, connection: Any) -> Iterator[None]:
        lib = binding()
        self._closed = ""

        def on_event(*_args: Any) -> None:
            os.eventfd_write(self._bell, 1)

        def on_close(_connection: Any, reason: int, _opaque: Any) -> None:
            silent = reason == lib.VIR_CONNECT_CLOSE_REASON_KEEPALIVE
            self._closed = "libvirt does not answer any more" if silent else "libvirt is gone"
            os.eventfd_write(self._bell, 1)

        with ExitStack() as undo:
            # An embedded driver can't be lost, and says so.
            with suppress(lib.libvirtError):
                connection.registerCloseCallback(on_close, None)
                undo.callback(_quietly, connection.unregisterCloseCallback)
            for kind in (lib.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lib.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED):
                handle = connection.domainEventRegisterAny(None, kind, on_event, None)
                undo.callback(_quietly, partial(connection.domainEventDeregisterAny, handle))
            undo.enter_context(self._alone(which(connection)))
            self._say(f"following the domains of {connection.getURI()} for the vptd in {self._paths.runtime}")
            self._trouble = ""
            try:
                yield
            except KeyboardInterrupt:
                # All this ends with the process, whether libvirt answers or not.
                undo.pop_all()
                raise

    @contextmanager
    def _alone(self, libvirt: str) -> Iterator[None]:
        path = _lock_path(self._paths, libvirt)
        try:
            lock = Lock(path, "vpt libvirt watch")
        except (FileNotFoundError, PermissionError):
            # No vptd has been there yet, or another user's: then attach does not know of us.
            yield
            return
        except ConflictError as error:
            raise ConflictError(error.message, hint=f"see which process: fuser {path}") from None
        try:
            yield
        finally:
            lock.release()

    def _look_after(self, connection: Any, once: bool) -> None:
        while not self._closed:
            soon = self._tend(connection, once)
            if once and not soon:
                return
            self._wait(_RETRY_S if soon or self._vptd is None else _LOOK_S)
        self._complain(self._closed)

    def _tend(self, connection: Any, once: bool) -> bool:
        """Look, and put right what has been wrong for long enough. True: look again soon."""
        try:
            if self._vptd is None:
                self._vptd = Client(self._paths.control)
                self._trouble = ""
            domains = self._domains(connection)
            self._sweep(domains, which(connection))
            self._reconnect(connection, domains)
            self._mend(connection, domains)
        except DaemonError as error:
            self._hang_up()
            if once:
                raise
            self._complain(error)
            return False
        return self._left_over.young or self._lost.young

    def _domains(self, connection: Any) -> list[Domain]:
        found = []
        for domain in connection.listAllDomains():
            name = domain.name()
            # Of one that can't be read, nothing is left over.
            seen = Domain(name, owner_of(connection, domain), active=True, plugs=())
            with self._going_on(), suppress(NotFoundError):
                target = Target(connection, name)
                texts = [target.live_xml()] if target.active else []
                texts += [target.config_xml()] if target.persistent else []
                plugs = {plug.name: plug for text in texts for plug in plugged_in(text)}
                ours = filter(self._is_ours, plugs.values())
                late = target.active and self._is_late(texts[0])
                seen = Domain(name, target.owner, target.active, tuple(ours), late)
            found.append(seen)
        return found

    def _is_ours(self, plug: Plug) -> bool:
        return plug.runtime_dir == str(self._paths.runtime)

    def _is_late(self, xml: str) -> bool:
        late = gone_late(xml)
        return any(plug.name in late for plug in filter(self._is_ours, plugs_in(xml)))

    def _sweep(self, domains: list[Domain], libvirt: str) -> None:
        assert self._vptd is not None
        ports = self._vptd.call("port.list")["ports"]
        for name in self._left_over.ripe(left_over(ports, domains, libvirt)):
            with self._going_on():
                if _has_peer(self._vptd, name):
                    # Whatever libvirt says, something uses it.
                    continue
                self._vptd.call("port.del", name=name, if_exists=True)
                self._say(f"port {name} deleted: the domain that it was made for does not have it any more")

    def _reconnect(self, connection: Any, domains: list[Domain]) -> None:
        assert self._vptd is not None
        running = {domain.name: domain for domain in domains if domain.active}
        alone = [(name, plug) for name, domain in running.items() for plug in lost(self._vptd, domain.plugs)]
        waiting = {(name, plug.name): plug for name, plug in alone}
        for key in self._lost.ripe(waiting):
            with self._going_on():
                if reconnect(Target(connection, key[0]), self._vptd, waiting[key]):
                    self._say(f"port {key[1]} connected again to {key[0]}")

    def _mend(self, connection: Any, domains: list[Domain]) -> None:
        """Not while a detach is at it, which would do so itself."""
        for domain in domains:
            if domain.late:
                with self._going_on(), in_turn(str(self._paths.runtime)):
                    for port in Target(connection, domain.name).mend_late():
                        self._say(f"{domain.name} has let go of {port} since vpt detach gave up")

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """What is wrong with one domain or port is no reason to leave the others alone."""
        try:
            yield
        except DaemonError:
            raise
        except VptError as error:
            self._complain(error)

    # ---- waiting ----

    def _wait(self, seconds: float) -> None:
        """Until that time has passed, something has happened at libvirt, or vptd has hung up."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        if self._vptd is not None:
            poll.register(self._vptd.fileno(), select.POLLIN)
        for fd, _ in poll.poll(seconds * 1000):
            if fd == self._bell:
                os.eventfd_read(self._bell)
            else:
                # It has nothing to say that was not asked for.
                self._hang_up()

    def _hang_up(self) -> None:
        if self._vptd is not None:
            self._vptd.close()
            self._vptd = None

    def _complain(self, trouble: object) -> None:
        """Once, until there is something else to say."""
        text = str(trouble)
        if text != self._trouble:
            self._trouble = text
            self._say(text)


def _has_peer(vptd: Client, name: str) -> bool:
    try:
        return vptd.call("port.show", name=name)["peer"] is not None
    except NotFoundError:
        return False


def _quietly(action: Callable[[], object]) -> None:
    with suppress(binding().libvirtError, TimeoutExpired):
        action()


def _lock_path(paths: RuntimePaths, libvirt: str) -> Any:
    return paths.runtime / f"watch-{libvirt.replace('/', '_')}.lock"


def is_watched(paths: RuntimePaths, libvirt: str) -> bool:
    """Does a watch look after the ports of this vptd and this libvirt (as `which` calls it)?"""
    try:
        file = _lock_path(paths, libvirt).open("rb")
    except OSError:
        return False
    with closing(file):
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
