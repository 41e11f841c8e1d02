# SPDX-License-Identifier: BSD-2-Clause
"""An existing libvirt domain, and the ports that it is to have, as `vpt attach` and `vpt detach` do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from vpt.daemon.client import Client
from vpt.daemon.runtime import locate
from vpt.errors import MissingError, NotFoundError
from vpt.libvirt_plugin import attach as plugin
from vpt.libvirt_plugin._connection import find_domain, open_libvirt, owner_of
from vpt.libvirt_plugin.rules import plugged_in
from vpt.provision.config import VmConfig
from vpt.provision.machine import Port

__all__ = ["DomainPorts", "attach", "attached_ports", "check_domain", "detach", "is_running", "ports_of"]


def _domain(config: VmConfig) -> str:
    assert config.domain is not None
    return config.domain


@contextmanager
def _libvirt_of(config: VmConfig) -> Iterator[Any]:
    """Its libvirt. MissingError names the machine: who asks may have another one in mind."""
    with ExitStack() as stack:
        try:
            libvirt = stack.enter_context(open_libvirt(config.connect))
        except MissingError as error:
            raise MissingError(
                f"machine {config.name!r} is a domain of libvirt's: {error.message}",
                hint="systemctl start libvirtd; a topology names another by the machine's connect",
                code=error.code,
            ) from None
        yield libvirt


def check_domain(config: VmConfig) -> None:
    """NotFoundError: libvirt has no such domain."""
    with _libvirt_of(config) as libvirt:
        find_domain(libvirt, _domain(config))


def is_running(config: VmConfig) -> bool:
    """Also false if there is no such domain, or no libvirt."""
    with suppress(NotFoundError, MissingError), _libvirt_of(config) as libvirt:
        return bool(find_domain(libvirt, _domain(config)).isActive())
    return False


@dataclass(frozen=True, slots=True)
class DomainPorts:
    """Ports of one vptd that a domain has.

    everywhere: in its configuration, and running if it runs. anywhere: in one of them, in their order.
    owner:      what ports that were made for it are marked with.
    """

    everywhere: frozenset[str]
    anywhere: tuple[str, ...]
    owner: str


def attached_ports(config: VmConfig, runtime_dir: str) -> DomainPorts:
    """Of that vptd's ports those that the machine's domain has."""
    with _libvirt_of(config) as libvirt:
        return ports_of(libvirt, find_domain(libvirt, _domain(config)), runtime_dir)


def ports_of(connection: Any, domain: Any, runtime_dir: str) -> DomainPorts:
    """Of that vptd's ports those that the domain has."""
    each = [
        [plug.name for plug in plugged_in(text) if plug.runtime_dir == runtime_dir]
        for text in _descriptions(domain)
    ] or [[]]
    everywhere = frozenset.intersection(*map(frozenset, each))
    anywhere = tuple(dict.fromkeys(name for names in reversed(each) for name in names))
    return DomainPorts(everywhere, anywhere, owner_of(connection, domain))


def _descriptions(domain: Any) -> list[str]:
    import libvirt

    texts = [str(domain.XMLDesc(0))] if domain.isActive() else []
    if domain.isPersistent():
        texts.append(str(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))
    return texts


def attach(config: VmConfig, ports: list[Port], vptd: Client) -> None:
    """Plug the ports in, all or none: into the running domain if it runs, and into its configuration."""
    with _libvirt_of(config) as libvirt, ExitStack() as undo:
        domain = find_domain(libvirt, _domain(config))
        active, persistent = bool(domain.isActive()), bool(domain.isPersistent())
        for port in ports:
            settings = {"mac": port.mac} | ({"pairs": port.pairs} if port.pairs > 1 else {})
            request = plugin.Request(
                vm=_domain(config),
                switch=port.switch,
                kind=port.kind,
                port=port.name,
                settings=settings,
                live=active,
                config=persistent,
                existing=True,
            )
            plugin.attach(libvirt, vptd, request)
            undo.callback(_quietly_detach, libvirt, config, port.name)
        undo.pop_all()


def detach(config: VmConfig, names: list[str]) -> None:
    """Take the ports out, wherever the domain has them; they themselves stay."""
    with suppress(NotFoundError), _libvirt_of(config) as libvirt:
        for name in names:
            _detach(libvirt, config, name)


def _detach(libvirt: Any, config: VmConfig, name: str) -> None:
    def open_vptd(runtime: str) -> Client:
        return Client(locate(runtime).control)

    with suppress(NotFoundError):
        plugin.detach(libvirt, open_vptd, _domain(config), name, keep_port=True)


def _quietly_detach(libvirt: Any, config: VmConfig, name: str) -> None:
    with suppress(Exception):
        _detach(libvirt, config, name)
