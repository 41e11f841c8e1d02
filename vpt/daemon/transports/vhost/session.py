# SPDX-License-Identifier: BSD-2-Clause
"""Admission and dispatch: every message passes here.

A message that breaks a rule ends in a RuleError; whether that costs the sender its connection or only a
negative acknowledgement is decided in one place, ``Session.handle``.

A request that is unknown or was not negotiated is refused like any other fault: with a negative
acknowledgement if one was asked for, else by closing. Ignoring it would leave a sender that expects an answer
waiting for ever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

from vpt.daemon.transports.base import Settings
from vpt.daemon.transports.vhost import (
    announce,
    backend,
    calls,
    config,
    device,
    device_state,
    inband,
    inflight,
    log,
    memory,
    negotiation,
    rings,
)
from vpt.daemon.transports.vhost.state import Group, Handler, Reply, State
from vpt.vhost_user import (
    U64,
    Message,
    ProtocolFeature,
    Request,
    Rings,
    Rule,
    RuleError,
    VirtioFeature,
    VringAddr,
    VringFd,
    VringState,
    feature_names,
)

if TYPE_CHECKING:
    from vpt.daemon.descriptors import Closer
    from vpt.dataplane import Port

_GROUPS: tuple[Group, ...] = (
    negotiation.GROUP,
    device.GROUP,
    memory.GROUP,
    log.GROUP,
    inflight.GROUP,
    rings.GROUP,
    announce.GROUP,
    backend.GROUP,
    config.GROUP,
    inband.GROUP,
    device_state.GROUP,
)
_HANDLERS: dict[Request, Handler] = {
    request: handler for group in _GROUPS for request, handler in group.handlers.items()
}
# QEMU 7.2 accepts this bit with all others below the last that it knows, and has nothing of the kind.
_ON_REQUEST = ProtocolFeature.INBAND_NOTIFICATIONS
OFFERED_PROTOCOL: ProtocolFeature = reduce(or_, (group.offers for group in _GROUPS))

_NACK = U64(1)
_ACK = U64(0)


class Session:
    """Back-end side of one connection. The caller resets the port before the first, and before it closes one.

    closer: of what the front-end sends that nobody wants.
    on_features: told what the front-end has accepted, each time. pages_refused: it has refused a page for its
    kicks in an earlier connection; on_pages_refused: told when it does. on_rarp_dropped: told which address
    SEND_RARP could not announce, for the port's rules forbid it.
    calm_s: how long nothing has to change before it is given one.
    """

    def __init__(
        self,
        port: Port,
        *,
        max_pairs: int,
        settings: Settings,
        counters: Counter[str],
        closer: Closer,
        mac: bytes | None = None,
        in_band: bool = False,
        on_features: Callable[[int], None] = lambda _features: None,
        pages_refused: bool = False,
        on_pages_refused: Callable[[], None] = lambda: None,
        on_rarp_dropped: Callable[[bytes], None] = lambda _mac: None,
        calm_s: float = 1.0,
    ) -> None:
        self._counters = counters
        self._state = State(
            port,
            offered_protocol=OFFERED_PROTOCOL if in_band else OFFERED_PROTOCOL & ~_ON_REQUEST,
            settings=settings,
            max_pairs=max_pairs,
            closer=closer,
            mac=mac,
            on_features=on_features,
            pages_refused=pages_refused,
            on_pages_refused=on_pages_refused,
            on_rarp_dropped=on_rarp_dropped,
            calm_s=calm_s,
        )

    @property
    def offered(self) -> int:
        """Virtio features that the front-end may accept."""
        return self._state.offered

    def close(self) -> None:
        """Let go of the descriptors. The port has been reset."""
        self._state.close()

    def adapt(self, settings: Settings) -> None:
        """The port's settings have changed; the front-end is told what concerns it."""
        state = self._state
        before = config.net_config(state)
        was, state.settings = state.settings, settings
        told = config.net_config(state) != before and config.tell_changed(state)
        if told and settings.mtu != was.mtu:
            state.mtu = None  # what the front-end said was of the configuration before
        if settings.polls != was.polls:
            state.pages.policy_set(settings.polls)

    def hear_first(self, then: Callable[[], None]) -> bool:
        """In band, what was said on the back channel comes before what is said next: is something unheard?

        Then `then` is called once it was heard.
        """
        state = self._state
        if not state.has(ProtocolFeature.INBAND_NOTIFICATIONS) or state.channel is None:
            return False
        return state.channel.hear_first(then)

    def tell_broken(self, index: int) -> None:
        """Tell the front-end that this ring broke."""
        calls.tell_broken(self._state, self._state.rings[index])

    def describe(self) -> dict[str, Any]:
        """What was negotiated and how the rings are, for people and for ``vpt show``."""
        state = self._state
        return {
            "features": feature_names(state.features or 0, VirtioFeature),
            "protocol_features": feature_names(state.protocol, ProtocolFeature),
            "status": state.status,
            "mtu": state.mtu,
            "rings": [
                {
                    "index": r.index,
                    "num": r.num,
                    "enabled": r.enabled or state.always_enabled,
                    "running": r.running,
                    "kicks_to_page": r.index in state.pages.out,
                }
                for r in state.rings
                if r.num
            ],
        }

    def handle(self, message: Message) -> Reply | None:
        """Act on a message; returns the reply, if there is one. The caller closes both.

        Raises RuleError when the connection must end.
        """
        spec = message.spec
        self._counters["messages"] += 1
        acknowledge = (
            message.need_reply
            and self._state.has(ProtocolFeature.REPLY_ACK)
            and (spec is None or spec.reply is None)
        )
        try:
            self._admit(message)
            answer = _HANDLERS[Request(message.request)](self._state, message)
        except RuleError as error:
            error = RuleError(error.rule, f"{message.name}: {error.detail}", fatal=error.fatal)
            if not acknowledge or error.fatal:
                raise error from None
            self._counters[error.rule] += 1
            self._counters["refused"] += 1
            return Reply(_NACK, refused=error)
        if answer is None:
            return Reply(_ACK) if acknowledge else None
        return answer if isinstance(answer, Reply) else Reply(answer)

    def _admit(self, message: Message) -> None:
        """The table's rules about the connection's state."""
        spec = message.spec
        if spec is None:
            raise RuleError(Rule.UNKNOWN_REQUEST, "not one that this back-end knows")
        if spec.needs & ~self._state.protocol:
            raise RuleError(Rule.NOT_NEGOTIATED, f"needs {spec.needs.name}")
        if not (self._state.owner or spec.before_owner):
            raise RuleError(Rule.BEFORE_OWNER, "comes before SET_OWNER")
        if isinstance(message.payload, VringState | VringAddr | VringFd):
            ring = self._state.ring(message.payload.index)
            if spec.rings is Rings.STOPPED and ring.running:
                raise RuleError(Rule.RING_RUNNING, f"ring {ring.index} is running")
