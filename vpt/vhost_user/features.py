# SPDX-License-Identifier: BSD-2-Clause
"""Feature bits of the two negotiations: virtio's, and vhost-user's own protocol features."""

from enum import IntFlag


class ProtocolFeature(IntFlag):
    """vhost-user protocol features: those that this package has messages for."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    DEVICE_STATE = 1 << 19


class VirtioFeature(IntFlag):
    """virtio-net, ring and vhost bits (virtio 1.2, 5.1.3 and 6), by the names of the specification."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    GUEST_ANNOUNCE = 1 << 21
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    LOG_ALL = 1 << 26
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56


class DeviceStatus(IntFlag):
    """The virtio device status byte (virtio 1.2, 2.1), as SET_STATUS and GET_STATUS carry it."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


def feature_names(bits: int, kind: type[IntFlag]) -> list[str]:
    """Names of the bits set, lowest first; a bit without a name is shown as ``bit N``."""
    known = {flag.value: flag.name or "" for flag in kind}
    return [known.get(1 << n, f"bit {n}") for n in range(bits.bit_length()) if bits >> n & 1]
