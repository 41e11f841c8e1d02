# SPDX-License-Identifier: BSD-2-Clause
"""Pages for kicks that nobody waits for ("host notifiers" in the protocol).

While the port's policy asks for no kicks, the front-end is given a page to map in the place of each ring's
doorbell: a kick is a store to memory then, and no exit. When the policy changes, the page is taken back.

What the front-end does is not known before it has answered, and it may never answer. So a ring whose page it
may have is *unheard* to the data plane, which looks at it now and then under any policy, until the front-end
has acknowledged that the page is gone. One request is on its way at a time.

A front-end that refuses one page is never given another, nor is the same process in its next connection:
QEMU refuses where its device has no page per queue, and up to 7.2 at least it then writes through a stale
pointer when asked again (vhost_user_slave_handle_vring_host_notifier).

Nothing is asked before all has been calm for a second. QEMU unmaps a page that it has lost in the background,
and aborts if the next one is lost before that is done (vhost_user_host_notifier_remove); under TCG a busy
vCPU holds that up until the next page comes.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from vpt.vhost_user import BackendRequest, ProtocolFeature, VringArea, close_fds

if TYPE_CHECKING:
    from vpt.daemon.transports.vhost.state import State

OFFERS = ProtocolFeature.HOST_NOTIFIER | ProtocolFeature.BACKEND_SEND_FD
_NEEDS = OFFERS | ProtocolFeature.BACKEND_REQ


class Pages:
    """Which rings of a connection have their page. polls: the port's policy asks for no kicks.

    refused: this front-end has refused one before. on_refused: told when it does. calm_s: how long nothing
    has to change before one is given or taken back.
    """

    def __init__(
        self,
        state: State,
        *,
        polls: bool,
        refused: bool,
        on_refused: Callable[[], None],
        calm_s: float,
    ) -> None:
        self._state = state
        self._calm_s = calm_s
        self._calm: asyncio.TimerHandle | None = None
        self._polls = polls
        self._refused = refused
        self._on_refused = on_refused
        self._asking = False
        self._fds: list[int] = []  # one page for all: nobody reads it
        self.out: set[int] = set()  # the front-end may have mapped it
        self._started: set[int] = set()  # since it was given one; QEMU takes it away when a ring stops
        self._kept: set[int] = set()  # it would not give it back

    @property
    def offered(self) -> bool:
        """Would this front-end be given one?"""
        return self._polls and not self._refused

    def ring_started(self, index: int) -> None:
        """A ring runs from now on."""
        self._started.add(index)
        self._kept.discard(index)
        self._changed()

    def channel_set(self) -> None:
        """There is another channel. Nobody knows what became of what was asked on the last one."""
        self._started |= self.out
        self._changed()

    def policy_set(self, polls: bool) -> None:
        """The port's policy was set."""
        self._polls = polls
        self._kept.clear()
        self._changed()

    def close(self) -> None:
        """Let go of the page."""
        self._stir()
        close_fds(self._fds)
        self._fds.clear()

    def _changed(self) -> None:
        self._stir()
        if self._calm_s:
            self._calm = asyncio.get_running_loop().call_later(self._calm_s, self._calmed)
        self._settle()

    def _stir(self) -> None:
        if self._calm is not None:
            self._calm.cancel()
            self._calm = None

    def _calmed(self) -> None:
        self._calm = None
        self._settle()

    def _settle(self) -> None:
        """Ask for the next thing that is not as it should be."""
        state = self._state
        if self._calm is not None or self._asking or not self._may_ask():
            return
        for ring in state.rings:
            if not ring.running:
                continue
            if self.offered and (ring.index in self._started or ring.index not in self.out):
                self._give(ring.index)
                return
            if not self._polls and ring.index in self.out - self._kept:
                self._ask(VringArea(ring.index | VringArea.NOFD, 0, 0), -1, partial(self._taken, ring.index))
                return

    def _may_ask(self) -> bool:
        """Nothing is asked that was not negotiated, or is not anymore, nor where no answer comes."""
        channel = self._state.channel
        if channel is None or not channel.open or not channel.acknowledge:
            return False
        return not _NEEDS & ~self._state.protocol

    def _give(self, index: int) -> None:
        self.out.add(index)
        self._started.discard(index)
        self._state.port.vring_unheard(index, True)
        if not self._fds:
            self._fds.append(_page())
        self._ask(VringArea(index, mmap.PAGESIZE, 0), self._fds[0], partial(self._given, index))

    def _ask(self, area: VringArea, fd: int, then: Callable[[bool], None]) -> None:
        channel = self._state.channel
        assert channel is not None
        self._asking = True

        def answered(done: bool) -> None:
            self._asking = False
            if channel.open:  # or nobody knows
                then(done)

        channel.request(BackendRequest.VRING_HOST_NOTIFIER_MSG, area, fd, answered)

    def _given(self, index: int, done: bool) -> None:
        if not done:
            self._heard(index)
            self._refused = True
            self._on_refused()
        if self._polls:
            self._settle()
        else:  # not at once what has just been given
            self._changed()

    def _taken(self, index: int, done: bool) -> None:
        if done:
            self._heard(index)
        else:
            self._kept.add(index)
        self._settle()

    def _heard(self, index: int) -> None:
        self.out.discard(index)
        self._state.port.vring_unheard(index, False)


def _page() -> int:
    """A file of a page that stays one."""
    fd = os.memfd_create("vpt-kicks", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, mmap.PAGESIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd
