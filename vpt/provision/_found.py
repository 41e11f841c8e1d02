# SPDX-License-Identifier: BSD-2-Clause
"""Domains without a record of ours: `vpt attach` plugged them in.

Asked are the libvirts that owners of ports name. A port that was made for no VM says nothing of whose it is:
as long as there is one, this user's own libvirt is asked, and those that the topology names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vpt.daemon.owners import domain_of
from vpt.errors import MissingError, UsageError, VptError
from vpt.libvirt_plugin._connection import (
    NO_LIBVIRT,
    binding,
    open_libvirt,
    translate,
    uri_of,
    which_here,
    which_of,
)
from vpt.libvirt_plugin.attach import free_name
from vpt.provision._attached import ports_of
from vpt.provision.config import VmConfig, VmPort

__all__ = ["found_domains"]

# For a libvirt of which nothing says that it has anything of ours. One that asking starts needs seconds.
_PATIENCE_S = 15.0
_SHOWN = 5


def found_domains(
    ports: Mapping[str, str | None], runtime_dir: str, known: Sequence[VmConfig], named: Sequence[VmConfig]
) -> tuple[list[VmConfig], list[str]]:
    """The domains, with the ports of this vptd that they have; and of what could not be asked, why.

    ports: all of vptd, with their owners. known: machines that have a record.
    named: as a topology calls them, and in which order it lists their ports.
    """
    search = _Search(ports, runtime_dir, known, named)
    search.run()
    return search.found, search.unknown


class _Search:
    def __init__(
        self,
        ports: Mapping[str, str | None],
        runtime_dir: str,
        known: Sequence[VmConfig],
        named: Sequence[VmConfig],
    ) -> None:
        self._ports = ports
        self._runtime_dir = runtime_dir
        self._known, self._named = known, named
        self._taken = {vm.name for vm in known}
        # Made for no VM, and not known to be any machine's.
        self._free = [name for name, owner in ports.items() if owner is None]
        self._claim(name for vm in known for name in vm.port_names)
        self.found: list[VmConfig] = []
        self.unknown: list[str] = []

    def run(self) -> None:
        for libvirt, uri in self._libvirts().items():
            owned = [name for name, owner in self._ports.items() if _libvirt_of(owner) == libvirt]
            try:
                self._ask(libvirt, uri, limit_s=None if owned else _PATIENCE_S)
            except VptError as error:
                if owned or error.code != NO_LIBVIRT:
                    names = sorted(owned or self._free)
                    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                    shown = f"{', '.join(names[:_SHOWN])}{more}"
                    self.unknown.append(f"not shown is which domains have {shown}: {error.message}")

    def _libvirts(self) -> dict[str, str | None]:
        """Which are to be asked, and the URI of each; None: it is another user's."""
        asked = [_libvirt_of(owner) for owner in self._ports.values()]
        if self._free:
            asked += [which_here(), *(which_of(vm.connect) for vm in self._named if vm.domain and vm.connect)]
        # By a socket of its own, only the user knows how to reach it.
        told = [vm.connect for vm in (*self._known, *self._named) if vm.connect]
        uris = {which_of(uri): uri for uri in told}
        return {libvirt: uris.get(libvirt) or uri_of(libvirt) for libvirt in asked if libvirt}

    def _ask(self, libvirt: str, uri: str | None, limit_s: float | None) -> None:
        if uri is None:
            raise MissingError(f"libvirt's {libvirt} is another user's")
        lib = binding()
        with open_libvirt(uri, limit_s) as connection:
            try:
                # One that runs has what another one's configuration may name as well.
                domains = sorted(connection.listAllDomains(), key=lambda one: not one.isActive())
            except lib.libvirtError as error:
                raise translate(error, "libvirt", "look at its domains", uri) from error
            for domain in domains:
                try:
                    self._look_at(connection, domain, libvirt, uri)
                except lib.libvirtError as error:
                    # One that has gone meanwhile has no ports.
                    if error.get_error_code() != lib.VIR_ERR_NO_DOMAIN:
                        raise translate(error, domain.name(), "look at it", uri) from error

    def _look_at(self, connection: Any, domain: Any, libvirt: str, uri: str) -> None:
        name = domain.name()
        if any(_is(vm, name, libvirt) for vm in self._known):
            return
        try:
            has = ports_of(connection, domain, self._runtime_dir)
        except UsageError as error:
            self.unknown.append(f"not shown is which ports the domain {name} has: {error.message}")
            return
        mine = [port for port in has.anywhere if self._ports.get(port) == has.owner or port in self._free]
        if not mine:
            return
        wish = next((vm for vm in self._named if vm.name not in self._taken and _is(vm, name, libvirt)), None)
        if wish is not None:
            order = {port: place for place, port in enumerate(wish.port_names)}
            mine.sort(key=lambda port: order.get(port, len(order)))
        found = VmConfig(
            name=free_name(name, self._taken) if wish is None else wish.name,
            domain=name,
            connect=uri if wish is None else wish.connect,
            ports=[VmPort(port=port) for port in mine],
        )
        self._taken.add(found.name)
        self._claim(mine)
        self.found.append(found)

    def _claim(self, names: Iterable[str]) -> None:
        """A machine has these: no other one does."""
        claimed = set(names)
        self._free = [name for name in self._free if name not in claimed]


def _libvirt_of(owner: str | None) -> str | None:
    domain = domain_of(owner)
    return None if domain is None else domain[0]


def _is(vm: VmConfig, domain: str, libvirt: str) -> bool:
    return vm.domain == domain and (vm.connect is None or which_of(vm.connect) == libvirt)
