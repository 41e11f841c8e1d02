# SPDX-License-Identifier: BSD-2-Clause
"""The data plane, by using it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from vpt.doctor._check import Check
from vpt.errors import MissingError, TimeoutExpired

if TYPE_CHECKING:
    from vpt.dataplane import App, Engine, Port

__all__ = ["data_plane"]

_PACKETS = 1000
_SELF_TEST_S = 10.0


def data_plane() -> Check:
    try:
        import vpt.dataplane  # noqa: F401
    except ImportError as error:
        raise MissingError(
            f"the C extension does not load: {error}", hint="build it: pip install ."
        ) from None
    seconds = _self_test()
    what = f"{_PACKETS} packets through a switch, none lost, {seconds * 1e3:.0f} ms"
    return Check("data plane", "ok", what)


def _self_test() -> float:
    """Two app ports on a switch in this process, packets from one to the other. Seconds that they took."""
    from vpt.dataplane import Engine

    with Engine(workers=1) as engine, ExitStack() as undo:
        switch = engine.add_switch("doctor")
        (port_a, app_a), (port_b, app_b) = (_end(switch, name, undo) for name in ("end-a", "end-b"))
        ports = {port.id: port for port in (port_a, port_b)}
        deadline = time.monotonic() + _SELF_TEST_S
        waiting = [app_a, app_b]
        while waiting:
            waiting = [app for app in waiting if not app.step()]
            _act_on_status(engine, ports)
            _check_deadline(deadline, "the handshake over the rings")
        begin = time.monotonic()
        _exchange(app_a, app_b, deadline)
        return time.monotonic() - begin


def _end(switch: Any, name: str, undo: ExitStack) -> tuple[Port, App]:
    from vpt.daemon.transports.ring import create_bundle
    from vpt.dataplane import App, Kind, RegionOptions

    options = RegionOptions(name=name)
    bundle = create_bundle(options)
    undo.callback(bundle.close)
    port = switch.add_port(name, Kind.APP)
    port.ring_attach(bundle.memory, options, bundle.kicks, bundle.interrupts)
    app = undo.enter_context(App(bundle.memory, bundle.kicks, bundle.interrupts))
    return port, app


def _act_on_status(engine: Engine, ports: dict[int, Port]) -> None:
    for event in engine.events():
        ports[event.port_id].ring_status()


def _exchange(sender: App, receiver: App, deadline: float) -> None:
    sent = received = 0
    while received < _PACKETS:
        if sent < _PACKETS and sent - received < 64 and sender.send(0, _frame(sent)):
            sent += 1
            continue
        frame = receiver.recv(0)
        if frame is None:
            receiver.wait(0, timeout=0.1)
            _check_deadline(deadline, f"packet {received} of {_PACKETS}")
        elif frame != _frame(received):
            raise MissingError("a packet arrived that is not what was sent", hint="report this as a bug")
        else:
            received += 1


def _frame(number: int) -> bytes:
    return b"\xff" * 6 + b"\x52\x54\x00\x00\x00\x01" + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(42)


def _check_deadline(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise TimeoutExpired(f"waited {_SELF_TEST_S:.0f} s for {what}", hint="report this as a bug")
