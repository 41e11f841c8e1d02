# SPDX-License-Identifier: BSD-2-Clause
"""A file on a FUSE mount whose server stops answering: whoever asks for a page, a size or a close waits."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from pathlib import Path

import pytest

from vpt.closing import Closing

_IN = struct.Struct("=IIQQIIII")
_OUT = struct.Struct("=IiQ")
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
_LOOKUP, _FORGET, _GETATTR, _OPEN, _INIT, _INTERRUPT = 1, 2, 3, 14, 26, 36
_MNT_FORCE = 1
_MNT_DETACH = 2
_ROOT, _FILE = 1, 2
_SIZE = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


class SilentFile(Closing):
    """A file of 1 MiB. Its server has answered what it takes to open it, and answers nothing more."""

    def __init__(self, where: Path) -> None:
        where.mkdir()
        self._where = str(where).encode()
        try:
            self._server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            pytest.skip(f"missing: /dev/fuse ({error.strerror})")
        options = f"fd={self._server},rootmode=40000,user_id=0,group_id=0".encode()
        if _libc.mount(b"vpt-test", self._where, b"fuse", ctypes.c_ulong(0), options):
            why = os.strerror(ctypes.get_errno())
            os.close(self._server)
            pytest.skip(f"missing: a FUSE mount ({why})")
        answering = threading.Thread(target=self._answer_until_open)
        answering.start()
        self.fd = os.open(where / "file", os.O_RDWR | os.O_CLOEXEC)
        answering.join()

    def close(self) -> None:
        """All that wait are told that the server is gone."""
        _libc.umount2(self._where, _MNT_FORCE | _MNT_DETACH)
        os.close(self._server)
        with contextlib.suppress(OSError):
            os.close(self.fd)

    def _answer_until_open(self) -> None:
        opened = False
        while not opened:
            request = os.read(self._server, 1 << 17)
            _, what, unique, node, *_ = _IN.unpack_from(request)
            if what in (_FORGET, _INTERRUPT):
                continue
            body = self._answer(what, node)
            error = 0 if body is not None else -errno.ENOSYS
            os.write(self._server, _OUT.pack(_OUT.size + len(body or b""), error, unique) + (body or b""))
            opened = what == _OPEN

    @staticmethod
    def _answer(what: int, node: int) -> bytes | None:
        if what == _INIT:
            return struct.pack("=IIIIHHII", 7, 31, 0, 0, 0, 0, 1 << 16, 0).ljust(64, b"\0")
        if what == _LOOKUP:
            return struct.pack("=QQQQII", _FILE, 0, 0, 0, 0, 0) + _attributes(_FILE)
        if what == _GETATTR:
            return struct.pack("=QII", 0, 0, 0) + _attributes(node)
        if what == _OPEN:
            return struct.pack("=QII", 1, 0, 0)
        return None


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o600
    return _ATTR.pack(node, _SIZE, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
