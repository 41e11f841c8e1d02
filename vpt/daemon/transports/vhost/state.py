# SPDX-License-Identifier: BSD-2-Clause
"""What is known of one connection, and what every group of messages needs to work on it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from vpt.daemon.transports.base import Settings
from vpt.daemon.transports.vhost.held import Held
from vpt.daemon.transports.vhost.pages import OFFERS as PAGES
from vpt.daemon.transports.vhost.pages import Pages
from vpt.dataplane import vhost_features
from vpt.errors import DataplaneError
from vpt.vhost_user import (
    U64,
    Message,
    Payload,
    ProtocolFeature,
    Request,
    Rule,
    RuleError,
    VirtioFeature,
    VringAddr,
    close_fds,
)

if TYPE_CHECKING:
    from vpt.daemon.descriptors import Closer
    from vpt.daemon.transports.vhost.calls import InbandCall
    from vpt.daemon.transports.vhost.channel import Channel
    from vpt.daemon.transports.vhost.device_state import Transfer
    from vpt.dataplane import Port

P = TypeVar("P", bound=Payload)


@dataclass(slots=True)
class Reply:
    """An answer: its payload, and descriptors that travel with it. Owns them until they are sent.

    refused: why, if it is a negative acknowledgement.
    """

    payload: Payload
    fds: list[int] = field(default_factory=list)
    refused: RuleError | None = None

    def close(self) -> None:
        """Close the descriptors: they have been sent, or nobody is left to send them to."""
        fds, self.fds = self.fds, []
        close_fds(fds)


@dataclass(slots=True)
class Ring:
    """One ring as the front-end has described it. The data plane knows of it while it is running."""

    index: int
    kick: Held  # while it is running
    call: Held
    err: Held
    num: int = 0
    base: int | None = None  # where a ring begins that has not been told otherwise depends on its layout
    addr: VringAddr | None = None
    enabled: bool = False
    running: bool = False
    call_given: bool = False  # there was a SET_VRING_CALL, perhaps without a descriptor
    inband_call: InbandCall | None = None

    def take_call(self, message: Message) -> None:
        """What a SET_VRING_CALL brings, which may be nothing."""
        self.call.take(message)
        self.call_given = True
        self._end_inband()

    def close(self) -> None:
        """Let go of the descriptors."""
        for held in (self.kick, self.call, self.err):
            held.drop()
        self._end_inband()

    def _end_inband(self) -> None:
        if self.inband_call is not None:
            self.inband_call.close()
            self.inband_call = None


@dataclass(slots=True)
class Told:
    """A region of memory: where in which file it lies, and how often the front-end has added it."""

    where: tuple[int, int, int]  # device, inode, offset
    file: Held
    times: int = 1


class State:
    """One connection's state. The port's data plane has been reset when it begins."""

    def __init__(
        self,
        port: Port,
        *,
        settings: Settings,
        offered_protocol: int,
        max_pairs: int,
        closer: Closer,
        mac: bytes | None = None,
        on_features: Callable[[int], None],
        pages_refused: bool = False,
        on_pages_refused: Callable[[], None] = lambda: None,
        on_rarp_dropped: Callable[[bytes], None] = lambda _mac: None,
        calm_s: float = 1.0,
    ) -> None:
        self.on_features = on_features
        self.on_rarp_dropped = on_rarp_dropped
        self.port = port
        self.settings = settings
        self.pages = Pages(
            self,
            polls=settings.polls,
            refused=pages_refused,
            on_refused=on_pages_refused,
            calm_s=calm_s,
        )
        self.offered_protocol = int(offered_protocol) & ~(0 if self.pages.offered else int(PAGES))
        self.max_pairs = max_pairs
        self.closer = closer
        self.mac = mac
        self.offered = vhost_features() | VirtioFeature.PROTOCOL_FEATURES.value
        if mac is None:
            self.offered &= ~int(VirtioFeature.MAC)
        self.channel: Channel | None = None
        self.transfer: Transfer | None = None
        self.owner = False
        self.features: int | None = None
        self.protocol = 0
        self.status = 0
        self.mtu: int | None = None
        self.told: dict[tuple[int, int, int], Told] = {}  # by guest-physical address, size, user address
        self.log, self.log_event, self.record = (Held(closer) for _ in range(3))
        self.rings = [Ring(index, Held(closer), Held(closer), Held(closer)) for index in range(2 * max_pairs)]

    def take_features(self, features: int | None) -> None:
        """As the data plane has them now. The log ends with its feature, there and here."""
        if (self.features or 0) & ~(features or 0) & VirtioFeature.LOG_ALL:
            self.log.drop()
        self.features = features

    @property
    def packed(self) -> bool:
        """The rings' layout."""
        return bool((self.features or 0) & VirtioFeature.RING_PACKED)

    @property
    def always_enabled(self) -> bool:
        """Without VHOST_USER_F_PROTOCOL_FEATURES rings are enabled from the start."""
        return self.features is not None and not self.features & VirtioFeature.PROTOCOL_FEATURES

    @property
    def any_running(self) -> bool:
        """The device is not suspended."""
        return any(ring.running for ring in self.rings)

    def has(self, feature: ProtocolFeature) -> bool:
        """Was this protocol feature negotiated?"""
        return bool(self.protocol & feature)

    def ring(self, index: int) -> Ring:
        """The ring of that index; RuleError if there is none."""
        if index >= len(self.rings):
            raise RuleError(Rule.RING_INDEX, f"ring {index} of {len(self.rings)}")
        return self.rings[index]

    def close(self) -> None:
        """Let go of the descriptors. The port has been reset."""
        for ring in self.rings:
            ring.close()
        for held in (self.log, self.log_event, self.record, *(told.file for told in self.told.values())):
            held.drop()
        if self.channel is not None:
            self.channel.close()
        self.pages.close()
        self.drop_transfer()

    def drop_transfer(self) -> None:
        """The device state that was on its way is not wanted any more."""
        if self.transfer is not None:
            self.transfer.close()
            self.transfer = None


Handler = Callable[[State, Message], "Payload | Reply | None"]


@dataclass(frozen=True, slots=True)
class Group:
    """Messages that belong together, and the protocol features that are good for something by them.

    A handler raises RuleError for what it refuses. It returns the reply of a message that has one, else None.
    """

    handlers: Mapping[Request, Handler]
    offers: ProtocolFeature


def payload_of(message: Message, kind: type[P]) -> P:
    """The payload, which the decoder has made of that kind."""
    assert isinstance(message.payload, kind)
    return message.payload


def u64_of(message: Message) -> int:
    """The number that is the payload."""
    return payload_of(message, U64).value


_SAYS = {
    errno.EMEDIUMTYPE: "neither a memfd nor a file in /dev/shm or on hugetlbfs (QEMU: -object"
    " memory-backend-memfd,share=on; libvirt: <source type='memfd'/>)"
}
"""What the system's own words for an error would not tell."""


@contextmanager
def port_refuses(rule: Rule, what: str, *, or_by: Mapping[int, Rule] | None = None) -> Iterator[None]:
    """Turn the data plane's refusal into a broken rule of the protocol. or_by: other rules, by errno."""
    try:
        yield
    except DataplaneError as error:
        rule = (or_by or {}).get(error.errno, rule)
        raise RuleError(rule, f"{what}: {_SAYS.get(error.errno) or os.strerror(error.errno)}") from error
