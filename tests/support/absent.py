# SPDX-License-Identifier: BSD-2-Clause
"""Memory whose pages do not come (userfaultfd): a system call that writes there waits, with all its locks."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import struct
import threading

import pytest

from vpt.closing import Closing

_SYS_USERFAULTFD = 323  # x86-64
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_MISSING = 1
_libc = ctypes.CDLL(None, use_errno=True)


class AbsentMemory(Closing):
    """A page that is not there until close(), and threads of this process that wait for it."""

    def __init__(self) -> None:
        self._uffd = _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._uffd < 0:
            pytest.skip(f"missing: userfaultfd for kernel faults ({os.strerror(ctypes.get_errno())})")
        fcntl.ioctl(self._uffd, _UFFDIO_API, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
        self._page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        area = struct.pack("QQQQ", self.address, mmap.PAGESIZE, _MISSING, 0)
        fcntl.ioctl(self._uffd, _UFFDIO_REGISTER, bytearray(area))
        self._threads: list[threading.Thread] = []
        self._epolls: list[select.epoll] = []

    def close(self) -> None:
        """The page comes; who waited goes on."""
        if self._uffd >= 0:
            os.close(self._uffd)
        self._uffd = -1
        for thread in self._threads:
            thread.join()
        for epoll in self._epolls:
            epoll.close()
        self._page.close()

    def _call(self, function: str, *args: int) -> None:
        """Have a thread call a function of libc that writes there; back when it waits for the page."""
        thread = threading.Thread(target=lambda: getattr(_libc, function)(*map(ctypes.c_long, args)))
        self._threads.append(thread)
        thread.start()
        ready, _, _ = select.select([self._uffd], [], [], 30)
        assert ready, f"{function}() has not touched the page"

    def hold_epoll(self, fds: list[int]) -> None:
        """These eventfds are in an epoll set that is being read: who closes them last waits."""
        epoll = select.epoll()
        for fd in fds:
            epoll.register(fd, select.EPOLLOUT)
        self._call("epoll_wait", epoll.fileno(), self.address, 1, -1)
        self._epolls.append(epoll)

    def hold_socket(self, fd: int) -> None:
        """A stream socket with something in it is being read: who reads there waits."""
        self._call("recv", fd, self.address, 1, 0)
