# SPDX-License-Identifier: BSD-2-Clause
"""KVM's counters as libvirt reports them (virConnectGetAllDomainStats), for a VM that libvirt runs."""

from __future__ import annotations

import importlib
import re
import shlex
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

from vpt.errors import GuestError, MissingError, NotFoundError
from vpt.exits.meter import COUNTERS
from vpt.exits.sources.base import Source, Units
from vpt.qemu import domain_pid

__all__ = ["Domain", "LibvirtDomstats", "parse_domstats"]

# virDomainState
_STATES = {3: "paused", 4: "shutdown", 6: "crashed", 7: "suspended"}
_KEY = re.compile(r"vcpu\.(\d+)\.(\w+)\.sum")


class Domain:
    """A running libvirt domain, read-only where libvirt allows. Close it."""

    def __init__(self, name: str, uri: str | None) -> None:
        self._lib = _libvirt()
        self.name = name
        self._virsh = f"virsh -c {shlex.quote(uri)}" if uri else "virsh"
        try:
            self._conn = _open(self._lib, uri)
        except self._lib.libvirtError as exc:
            raise NotFoundError(
                f"no libvirt at {uri or 'its default URI'}: {exc}",
                hint="name the URI with --connect, or the VM by its QMP socket or pid",
            ) from exc
        try:
            self._dom = self._conn.lookupByName(name)
            active, persistent = self._dom.isActive(), self._dom.isPersistent()
            tree = ElementTree.fromstring(self._dom.XMLDesc())
        except self._lib.libvirtError as exc:
            self.close()
            raise NotFoundError(
                f"libvirt has no VM {name!r}: {exc}",
                hint=f"{self._virsh} list --all; a QMP socket is named with its folder",
            ) from exc
        if not active:
            self.close()
            raise NotFoundError(f"the VM {name!r} is not running", hint=f"{self._virsh} start {name}")
        # A transient domain that ends is gone from libvirt altogether, and can't be started there.
        again = f"{self._virsh} start {name}"
        if not persistent:
            again = f"it was transient: {self._virsh} create XMLFILE"
        self.again = f"{again}; measure again while it runs"
        self.resume = f"{self._virsh} resume {name}"
        self.type = tree.get("type", "")
        self.uuid = tree.findtext("uuid", "")
        self.pid = domain_pid(self.uuid, name)

    def stats(self) -> dict[str, Any]:
        """The vCPU group of the domain's statistics. GuestError: the domain ended."""
        flags = self._lib.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ENFORCE_STATS
        try:
            record = self._conn.domainListGetStats([self._dom], self._lib.VIR_DOMAIN_STATS_VCPU, flags)
        except self._lib.libvirtError as exc:
            self.status()
            raise GuestError(
                f"libvirt gives no statistics of {self.name}: {exc}",
                hint=f"{self._virsh} domstate {self.name}",
            ) from exc
        if not record:
            raise self._ended()
        self.status()
        stats: dict[str, Any] = record[0][1]
        return stats

    def status(self) -> str:
        """In QEMU's words. GuestError: the domain ended, or libvirt can't say whether it did."""
        try:
            state, _ = self._dom.state()
        except self._lib.libvirtError as exc:
            if exc.get_error_code() == self._lib.VIR_ERR_NO_DOMAIN:
                raise self._ended() from exc
            raise GuestError(
                f"libvirt does not say whether {self.name} still runs: {exc}",
                hint=f"{self._virsh} domstate {self.name}",
            ) from exc
        if state == self._lib.VIR_DOMAIN_SHUTOFF:
            raise self._ended()
        return _STATES.get(state, "running")

    def _ended(self) -> GuestError:
        return GuestError(f"the VM {self.name!r} ended while it was measured", hint=self.again)

    def close(self) -> None:
        """Close the connection; the domain goes on."""
        self._conn.close()


class LibvirtDomstats(Source):
    """vcpu.N.<counter>.sum for each vCPU."""

    name = "libvirt"
    # libvirt asks QEMU by query-stats, whose cost to the vCPUs depends on QEMU's version; the older one's
    # is taken off.
    kicks_per_query = 1

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        units = parse_domstats(domain.stats())
        if not units:
            raise MissingError(
                f"libvirt reports no KVM counters for {domain.name} (type {domain.type!r}): they need KVM, "
                "libvirt 8.9 and QEMU 7.1",
                hint="for a VM under TCG name its QMP socket: --source qemu-trace",
            )
        self.missing = tuple(n for n in COUNTERS if any(n not in unit for unit in units.values()))

    def read(self) -> Units:
        """Counters by vCPU."""
        return parse_domstats(self._domain.stats())


def parse_domstats(stats: dict[str, Any]) -> Units:
    """The counters among libvirt's fields. Names of KVM's own counters end in `.sum`."""
    units: Units = {}
    for key, value in stats.items():
        match = _KEY.fullmatch(key)
        if match and match[2] in COUNTERS:
            units.setdefault(f"vcpu{match[1]}", {})[match[2]] = int(value)
    return units


def _libvirt() -> ModuleType:
    try:
        libvirt = importlib.import_module("libvirt")
    except ImportError:
        raise MissingError(
            "libvirt's Python binding is not installed",
            hint="apt-get install libvirt-dev pkg-config && pip install libvirt-python; "
            "or name the VM by its QMP socket or pid",
        ) from None
    # Errors come as exceptions; the default handler would print them as well.
    libvirt.registerErrorHandler(lambda _ctx, _err: None, None)
    return libvirt


def _open(lib: ModuleType, uri: str | None) -> Any:
    """Read-only if the driver has that."""
    if uri is not None and "/embed" in uri:
        return lib.open(uri)
    return lib.openReadOnly(uri)
