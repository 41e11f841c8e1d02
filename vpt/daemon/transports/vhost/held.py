# SPDX-License-Identifier: BSD-2-Clause
"""Descriptors of the front-end's that are in use.

The data plane has copies and mappings of its own. It lets go of a file first and the closer last: the last
close of a file frees its memory, or waits for whoever has it in an epoll set, and nobody may wait for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpt.daemon.descriptors import Closer
    from vpt.vhost_user import Message


class Held:
    """One descriptor, or none (fd is -1 then). To be changed after the data plane has been told."""

    __slots__ = ("_closer", "fd")

    def __init__(self, closer: Closer) -> None:
        self._closer = closer
        self.fd = -1

    def drop(self) -> None:
        """It is not in use any more."""
        self._replace(-1)

    def take(self, message: Message) -> None:
        """That of a message, if it brings one, in the place of the one before."""
        fd = message.take_fd()
        self._replace(-1 if fd is None else fd)

    def _replace(self, fd: int) -> None:
        old, self.fd = self.fd, fd
        if old >= 0:
            self._closer.let_go([old])
