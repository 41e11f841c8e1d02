# SPDX-License-Identifier: BSD-2-Clause
"""KVM's counters as libvirt reports them (virConnectGetAllDomainStats), for a VM that libvirt runs."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any
from xml.etree import ElementTree

from vpt.errors import GuestError, MissingError, NotFoundError, TimeoutExpired
from vpt.exits.meter import COUNTERS
from vpt.exits.sources.base import Source, Units
from vpt.hints import virsh
from vpt.libvirt_plugin._answers import SilentVmError, bare, within
from vpt.libvirt_plugin._connection import binding, open_libvirt
from vpt.qemu import domain_pid

__all__ = ["Domain", "LibvirtDomstats", "parse_domstats"]

# virDomainState
_STATES = {3: "paused", 4: "shutdown", 6: "crashed", 7: "suspended"}
_KEY = re.compile(r"vcpu\.(\d+)\.(\w+)\.sum")


class Domain:
    """A running libvirt domain, read-only where libvirt allows. Close it.

    No call of libvirt is waited for in vain: one that does not answer, or whose QEMU does not answer it, is
    given up after a while, and Ctrl-C is heard meanwhile.
    """

    def __init__(self, name: str, uri: str | None) -> None:
        self._lib = binding()
        self.name = name
        # Why libvirt can't say how the domain is, since it can't: what comes after a silence says less.
        self._unsaid: Exception | None = None
        self._uri = uri
        with ExitStack() as stack:
            # The embedded driver has no read-only connections.
            read_only = uri is None or "/embed" not in uri
            self._conn = within(stack.enter_context(open_libvirt(uri, read_only=read_only)))
            self._look_up(name)
            self._stack = stack.pop_all()

    def _look_up(self, name: str) -> None:
        try:
            self._dom = within(self._conn.lookupByName(name))
            active, persistent = self._dom.isActive(), self._dom.isPersistent()
            tree = ElementTree.fromstring(self._dom.XMLDesc())
        except self._lib.libvirtError as exc:
            raise NotFoundError(
                f"libvirt has no VM {name!r}: {exc}",
                hint=f"{self._virsh('list', '--all')}; a QMP socket is named with its folder",
            ) from exc
        if not active:
            raise NotFoundError(f"the VM {name!r} is not running", hint=self._virsh("start", name))
        # A transient domain that ends is gone from libvirt altogether, and can't be started there.
        again = self._virsh("start", name)
        if not persistent:
            again = f"it was transient: {self._virsh('create', 'XMLFILE')}"
        self.again = f"{again}; measure again while it runs"
        self.resume = self._virsh("resume", name)
        self.type = tree.get("type", "")
        self.uuid = tree.findtext("uuid", "")
        self.pid = domain_pid(self.uuid, name)

    def _virsh(self, *words: str) -> str:
        return virsh(self._uri, *words)

    def stats(self) -> dict[str, Any]:
        """The vCPU group of the domain's statistics. GuestError: the domain ended, or libvirt has none."""
        flags = self._lib.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ENFORCE_STATS
        try:
            record = self._conn.domainListGetStats([bare(self._dom)], self._lib.VIR_DOMAIN_STATS_VCPU, flags)
        except (self._lib.libvirtError, TimeoutExpired, SilentVmError) as exc:
            self.status()
            raise self._no_word(f"libvirt gives no statistics of {self.name}", self._unsaid or exc) from exc
        if not record:
            raise self._ended()
        self.status()
        stats: dict[str, Any] = record[0][1]
        return stats

    def status(self) -> str | None:
        """In QEMU's words; None: libvirt can't say. GuestError: the domain ended."""
        try:
            state, _ = self._dom.state()
        except self._lib.libvirtError as exc:
            if exc.get_error_code() == self._lib.VIR_ERR_NO_DOMAIN:
                raise self._ended() from exc
            self._unsaid = self._unsaid or exc
            return None
        except TimeoutExpired as exc:
            self._unsaid = self._unsaid or exc
            return None
        self._unsaid = None
        if state == self._lib.VIR_DOMAIN_SHUTOFF:
            raise self._ended()
        return _STATES.get(state, "running")

    def require_there(self) -> None:
        """GuestError: the domain ended, or libvirt can't say that it did not."""
        if self.status() is None:
            raise self._no_word(f"libvirt does not say whether {self.name} still runs", self._unsaid)

    def _no_word(self, what: str, why: Exception | None) -> GuestError:
        hint = getattr(why, "hint", None) or self._virsh("domstate", self.name)
        return GuestError(f"{what}: {why}", hint=hint)

    def _ended(self) -> GuestError:
        return GuestError(f"the VM {self.name!r} ended while it was measured", hint=self.again)

    def close(self) -> None:
        """Close the connection; the domain goes on."""
        self._stack.close()


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
