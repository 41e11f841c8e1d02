# SPDX-License-Identifier: BSD-2-Clause
"""L: front-ends that come and go at the wrong moment."""

from __future__ import annotations

from contextlib import suppress

from vpt.conform.case import Cases
from vpt.conform.front_end import PLAIN, Failure
from vpt.conform.stage import Stage
from vpt.vhost_user import ProtocolFeature, Request, VirtioFeature, VringState

F = VirtioFeature
P = ProtocolFeature
CASES = Cases("life", "checklist")
case = CASES.case


@case(
    "L3-reboot-without-stop",
    "a guest may reboot without its rings being stopped; memory is overwritten meanwhile",
)
def _(stage: Stage) -> None:
    fe = stage.started(guarded=False)
    fe.transmit(stage.frame(1))
    memory = fe.memory.regions[0].map
    memory[: len(memory)] = b"\xcc" * len(memory)
    with suppress(ConnectionError):  # one that polls has seen it already, and may have closed the connection
        fe.send(Request.SET_VRING_NUM, VringState(1, 32))
    stage.settles(fe)


@case("L3-reset-and-again", "a device can be reset and started again, twenty times", protocol=P.RESET_DEVICE)
def _(stage: Stage) -> None:
    fe = stage.started(num=16)
    for n in range(20):
        fe.do(Request.RESET_DEVICE)
        fe.restart()
        fe.ask(Request.GET_FEATURES)
        stage.works(fe, n)


@case(
    "L4-receiver-goes-while-frames-come",
    "a receiver that goes in the middle of a burst takes nobody along",
    peer=True,
)
def _(stage: Stage) -> None:
    for n in range(10):
        fe = stage.started()
        for i in range(32):
            stage.neighbour.queue_frame(stage.frame(n * 32 + i))
        stage.neighbour.pairs[0].tx.kick()
        if n % 2:
            fe.stop_ring(0)
        stage.leave(fe)
        stage.neighbour.flush()


@case(
    "L5-stop-and-start",
    "all rings can be stopped and started again under traffic, as migration does",
    protocol=P.MQ,
)
def _(stage: Stage) -> None:
    fe = stage.started(features=int(PLAIN))
    for n in range(20):
        fe.transmit(*(stage.frame(n * 8 + i) for i in range(8)))
        bases = [fe.stop_ring(index) for index in (0, 1)]
        for index, base in enumerate(bases):
            fe.start_ring(index, base=base)
            fe.enable_ring(index)
        fe.ask(Request.GET_FEATURES)
    stage.works(fe)


@case(
    "L6-stopped-is-silent",
    "a stopped transmit ring is left alone",
    source="vhost-user, Ring states; checklist",
)
def _(stage: Stage) -> None:
    fe = stage.started()
    stage.works(fe)
    fe.stop_ring(1)
    tx = fe.pairs[0].tx
    before = tx.used_idx
    fe.queue_frame(stage.frame(2))
    tx.kick(force=True)
    fe.ask(Request.GET_FEATURES)
    if tx.used_idx != before:
        raise Failure("frames were taken")


@case("L9-a-hundred-front-ends", "front-ends that come and go leave nothing behind")
def _(stage: Stage) -> None:
    for n in range(100):
        fe = stage.started(num=16, buffer_size=256)
        fe.transmit(stage.frame(n))
        stage.leave(fe)
