# SPDX-License-Identifier: BSD-2-Clause
"""A tap interface of the host's kernel as a port."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Any

from vpt.daemon.ratelimit import PortLog
from vpt.daemon.transports.base import Settings, say_broken
from vpt.dataplane import Feature
from vpt.errors import DataplaneError, ExistsError, MissingError, UsageError

if TYPE_CHECKING:
    from vpt.dataplane import Event, Port

__all__ = ["TapTransport"]

_DEVICE = "/dev/net/tun"
# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02
_TUN_F_TSO6 = 0x04
_TUN_F_TSO_ECN = 0x08
_IFREQ = struct.Struct("16sH22x")
_VNET_HDR_SIZE = 12

# The kernel takes any checksum or segmentation request of a header, and makes those that we allow.
_FEATURES = (
    Feature.VNET_HDR
    | Feature.CSUM
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
    | Feature.HOST_ECN
    | Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
)
_OFFLOADS = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN


class TapTransport:
    """Attaches interface `ifname` (made if there is none, and then removed with the port)."""

    peer = None

    def __init__(self, port: Port, *, ifname: str, log: PortLog) -> None:
        self._port = port
        self._log = log
        self.ifname = ifname

    async def start(self) -> None:
        fd = _open(self.ifname)
        try:
            self._port.tap_attach(fd, int(_FEATURES))
        finally:
            # The data plane has its own copy.
            os.close(fd)
        self._log.info("attached interface %s", self.ifname)

    async def stop(self) -> None:
        """The interface goes when the port is deleted, with the last descriptor."""

    def on_event(self, event: Event) -> None:
        say_broken(self._log, event)

    def adapt(self, settings: Settings) -> None:
        """Nothing to add to what the data plane does."""

    def describe(self) -> dict[str, Any]:
        return {"protocol": "tap", "ifname": self.ifname}


def _open(ifname: str) -> int:
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        hint = (
            "modprobe tun" if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO) else f"ls -l {_DEVICE}"
        )
        raise MissingError(f"can't open {_DEVICE}: {error.strerror}", hint=hint) from None
    try:
        _configure(fd, ifname)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _configure(fd: int, ifname: str) -> None:
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(ifname.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    except OSError as error:
        raise _setiff_error(ifname, error) from None
    try:
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HDR_SIZE))
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)
    except OSError as error:
        raise DataplaneError(error.errno or errno.EIO, f"offloads of {ifname}") from None


def _setiff_error(ifname: str, error: OSError) -> Exception:
    if error.errno == errno.EPERM:
        user = os.environ.get("USER", "USER")
        return MissingError(
            f"no permission to make or use the interface {ifname}",
            hint=f"as root, once: ip tuntap add dev {ifname} mode tap vnet_hdr user {user}; "
            "or give vptd the capability CAP_NET_ADMIN",
        )
    if error.errno == errno.EBUSY:
        return ExistsError(
            f"another program uses the interface {ifname}", hint="choose another with --ifname"
        )
    if error.errno == errno.EINVAL:
        return UsageError(
            f"the interface {ifname} is no tap, or one without the virtio-net header",
            hint=f"make it again: ip link del {ifname}; ip tuntap add dev {ifname} mode tap vnet_hdr",
        )
    return DataplaneError(error.errno or errno.EIO, f"interface {ifname}")
