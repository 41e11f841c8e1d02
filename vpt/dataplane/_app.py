# SPDX-License-Identifier: BSD-2-Clause
"""App: the application side of an app port."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vpt.dataplane._native import check, fd_array, ffi, lib, new
from vpt.dataplane._owned import Owned
from vpt.dataplane._pure import vec_count
from vpt.dataplane._types import VnetHdr
from vpt.errors import UsageError

__all__ = ["App"]

_MAX_FRAME = int(lib.VPT_MAX_FRAME)
_MAX_VECTORS = vec_count(lib.VPT_MAX_PAIRS)
_RESTART = {errno.ENOLINK: "the host started over: call step() until it is ready again"}


class App(Owned):
    """Maps a region as its peer and moves packets. One thread at a time per handle and direction.

    region_fd, kick_fds, intr_fds: as the host has them; they stay the caller's.
    features: what the application accepts, beyond which nothing is negotiated (Feature bits).
    """

    _WHAT = "app handle"
    _FREE = lib.vpt_app_close

    def __init__(
        self, region_fd: int, kick_fds: Sequence[int], intr_fds: Sequence[int], features: int = 0
    ) -> None:
        out = ffi.new("vpt_app **")
        check(
            lib.vpt_app_open(region_fd, _vectors(kick_fds), _vectors(intr_fds), features, out),
            "open the region",
            {errno.EBADF: "fds must be the region's memfd and vec_count(pairs) eventfds each way"},
        )
        self._own(out[0])
        self._frame = ffi.new("uint8_t[]", _MAX_FRAME)

    def step(self) -> bool:
        """Next step of the handshake; True: ready. Else call again when the CFG interrupt fd is readable."""
        return bool(check(lib.vpt_app_step(self._handle()), "handshake with the host"))

    @property
    def pairs(self) -> int:
        return int(lib.vpt_app_pairs(self._handle()))

    @property
    def features(self) -> int:
        """As negotiated."""
        return int(lib.vpt_app_features(self._handle()))

    def intr_fd(self, vector: int) -> int:
        """The interrupt eventfd of a vector (vec_tx() and so on). The handle's own: not to be closed."""
        return check(lib.vpt_app_intr_fd(self._handle(), vector), f"interrupt fd of vector {vector}")

    def _ring(self, ring: int) -> int:
        if not 0 <= ring < self.pairs:
            raise UsageError(f"no ring {ring}: the region has {self.pairs}")
        return ring

    def send(self, ring: int, frame: bytes, hdr: VnetHdr | None = None, more: bool = False) -> bool:
        """Send one packet; False: no room. `more`: another follows at once, so it need not be published yet.

        Raises DataplaneError, errno EMSGSIZE: larger than the ring holds; ENOLINK: the host started over.
        """
        c_hdr = new("struct vpt_vnet_hdr *", asdict(hdr)) if hdr else ffi.NULL
        rc = lib.vpt_app_send(
            self._handle(), self._ring(ring), c_hdr, ffi.from_buffer(frame), len(frame), more
        )
        if rc == -errno.EAGAIN:
            return False
        check(rc, f"send {len(frame)} bytes on ring {ring}", _RESTART)
        return True

    def recv(self, ring: int) -> bytes | None:
        """Receive one packet; None: none there."""
        rc = lib.vpt_app_recv(self._handle(), self._ring(ring), ffi.NULL, self._frame, _MAX_FRAME)
        if rc == -errno.EAGAIN:
            return None
        size = min(check(rc, f"receive on ring {ring}", _RESTART), _MAX_FRAME)
        return bytes(ffi.buffer(self._frame, size))

    def wait(self, ring: int, *, to_send: bool = False, timeout: float = 1.0) -> bool:
        """Arm the interrupt and wait for a packet (or for room to send); False: none within `timeout` s."""
        rc = lib.vpt_app_wait(self._handle(), self._ring(ring), not to_send, int(timeout * 1000))
        return bool(check(rc, f"wait on ring {ring}", _RESTART))


def _vectors(fds: Sequence[int]) -> Any:
    """As many as any region can have: how many of them C reads is up to the region's header."""
    if len(fds) > _MAX_VECTORS:
        raise UsageError(f"{len(fds)} eventfds; a region has {_MAX_VECTORS} at most")
    return fd_array([*fds, *[-1] * (_MAX_VECTORS - len(fds))], _MAX_VECTORS, "eventfds")
