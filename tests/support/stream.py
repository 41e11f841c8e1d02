# SPDX-License-Identifier: BSD-2-Clause
"""A paced stream of numbered packets beside what a test does: whoever stalls their worker is found.

No test measures time for it. The sender's ring (apps.SLOTS) holds what is due in 0.64 s. A worker that takes
nothing for longer leaves no room for a packet that is due, and that is counted; one that a busy machine keeps
waiting for 0.3 s does not. A sender that was itself kept waiting catches up with 0.1 s of it at most.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from support.host import Host
from support.waiting import until
from vpt.dataplane import App, Receiver, Sender

PACE = 400  # packets per second
_SLICE_S = 0.004  # of sending, after which all that has come is taken
_LOOK_S = 1e-6
_MACS = ("52:54:00:00:01:01", "52:54:00:00:01:02")


class Stream:
    """Packets from one application to another, from now on until close()."""

    def __init__(self, sender: App, receiver: App) -> None:
        src, dst = _MACS
        self._sender = Sender(sender, src=src, dst=dst, burst=1, pps=PACE)
        self._receiver = Receiver(receiver, only=self._sender.run_id)
        self._enough = threading.Event()
        self._pool = ThreadPoolExecutor(1, "stream")
        self._work = self._pool.submit(self._run)

    def _run(self) -> None:
        while not self._enough.is_set():
            self._sender.run(_SLICE_S)
            self._receiver.run(_LOOK_S, poll=True)

    @property
    def sent(self) -> int:
        """So far."""
        return self._sender.sent

    @property
    def held_up(self) -> int:
        """How often there was no room for a packet that was due."""
        return self._sender.full

    def check(self) -> None:
        """Every packet that was due has been sent and has come, once and in turn; and the next one, too."""
        sent = self.sent
        until(lambda: self._work.done() or self._receiver.received > sent, "the stream's packets")
        assert not self._work.done(), self._work.exception()
        rx = self._receiver
        faults = {"held up": self.held_up, "lost": rx.lost, "twice": rx.duplicate, "late": rx.late}
        assert not any(faults.values()), faults

    def close(self) -> None:
        """No more packets."""
        self._enough.set()
        self._pool.shutdown()


class HostStream(Stream):
    """Between two ports by the worker of all the others, through a switch of their own.

    Of their own, for what the others flood is not theirs to take, and has to be switched as without them.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._switch = host.call(lambda: host.engine.add_switch("stream"))
        self._peers = [host.app(f"stream{i}", switch=self._switch, mac=mac) for i, mac in enumerate(_MACS)]
        super().__init__(*(peer.app for peer in self._peers))
        self.check()

    def close(self) -> None:
        """The ports go, too."""
        super().close()
        for peer in self._peers:
            self._host.remove_app(peer)
        self._host.call(self._switch.delete)
