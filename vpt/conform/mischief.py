# SPDX-License-Identifier: BSD-2-Clause
"""What a front-end does to a back-end beyond a single message: for the cases, and for vptd's own tests."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from vpt.conform.front_end import FrontEnd

STRANGE_FDS = ("file", "pipe", "socket", "directory")


def strange_fd(kind: str) -> int:
    """Something that is no eventfd, one of STRANGE_FDS. The caller's to close."""
    if kind == "file":
        return os.memfd_create("file")
    if kind == "pipe":
        r, w = os.pipe()
        os.close(w)
        return r
    if kind == "socket":
        return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY)


@contextmanager
def kick_storm(fe: FrontEnd) -> Iterator[None]:
    """Kicks for all rings, as many as a thread can write, while the body runs."""
    stop = threading.Event()

    def storm() -> None:
        while not stop.is_set():
            for queue in fe.queues():
                os.eventfd_write(queue.kick_fd, 1)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
