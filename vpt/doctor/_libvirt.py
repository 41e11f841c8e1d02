# SPDX-License-Identifier: BSD-2-Clause
"""libvirt: who answers, what this user may do there, the hook, and what the domains that run would take.

Nothing here is missing for vpt's own guests: a host without libvirt gets notes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import get_args

from vpt.daemon.runtime import RuntimePaths, as_root
from vpt.doctor._check import Check
from vpt.errors import VptError
from vpt.hints import vpt
from vpt.libvirt_plugin import hook as hooks
from vpt.libvirt_plugin import rules
from vpt.libvirt_plugin._connection import NO_LIBVIRT, binding, open_libvirt, session_runs, which
from vpt.libvirt_plugin._domain import Target
from vpt.libvirt_plugin.metadata import Kind, Plug
from vpt.libvirt_plugin.reconnect import SAYS_NO_RECONNECT
from vpt.libvirt_plugin.watch import is_watched

__all__ = ["hook", "libvirt", "looked_at"]

_ANSWER_S = 10.0
_SYSTEM, _SESSION = "qemu:///system", "qemu:///session"


def libvirt(paths: RuntimePaths) -> Iterator[Check]:
    """The system's, the one that the environment chooses, this user's; and the domains that run in them."""
    try:
        binding()
    except VptError as error:
        yield Check("libvirt", "note", f"{error.message}: no vpt attach for its domains", error.hint or "")
        return
    yield from looked_at(paths, "libvirt system", _SYSTEM)
    chosen = os.environ.get("LIBVIRT_DEFAULT_URI", "")
    if chosen not in ("", _SYSTEM, _SESSION):
        yield from looked_at(paths, "libvirt chosen", chosen)
    if session_runs():
        yield from looked_at(paths, "libvirt session", _SESSION)
    else:
        yield Check("libvirt session", "ok", "not running; libvirt starts it when this user asks for it")


def looked_at(paths: RuntimePaths, name: str, uri: str) -> list[Check]:
    try:
        return _look(paths, name, uri)
    except VptError as error:
        if error.code == NO_LIBVIRT:
            what = f"nobody answers at {uri}: no vpt attach for its domains"
            return [
                Check(name, "note", what, "apt-get install libvirt-daemon-system && systemctl start libvirtd")
            ]
        return [Check(name, "note", error.message, error.hint or "")]


def _look(paths: RuntimePaths, name: str, uri: str) -> list[Check]:
    with open_libvirt(uri, limit_s=_ANSWER_S) as connection:
        domains = connection.listAllDomains()
        running = [domain.name() for domain in domains if domain.isActive()]
        version = int(connection.getLibVersion())
        qemu = int(connection.getVersion())
        versions = f"{_dotted(version)} with QEMU {_dotted(qemu)}"
        what = f"{versions}; {len(running)} of {len(domains)} domains run"
        found = [Check(name, "ok", what)]
        if version in SAYS_NO_RECONNECT and not is_watched(paths, which(connection)):
            found = [
                Check(
                    name,
                    "note",
                    f"{what}; this version keeps QEMU from connecting again to ports attached while it runs",
                    vpt("libvirt", "watch", runtime=paths.runtime, uri=uri),
                )
            ]
        return [*found, *(_running(Target(connection, domain), qemu) for domain in sorted(running))]


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


def _running(target: Target, qemu_version: int) -> Check:
    """Which kinds of port would attach plug in while the domain runs, and why no others?"""
    xml = target.live_xml()
    ports = ", ".join(plug.name for plug in rules.plugged_in(xml)) or "none"
    refused: dict[tuple[str, str], list[str]] = {}
    for kind in get_args(Kind):
        try:
            target.require_live()
            rules.check_live(xml, _smallest(kind), qemu_version)
        except VptError as error:
            refused.setdefault((error.message, error.hint or ""), []).append(kind)
    name = f"domain {target.name}"
    if not refused:
        return Check(name, "ok", f"takes ports of both kinds while it runs; has: {ports}")
    why = "; ".join(f"no {' or '.join(kinds)} port: {message}" for (message, _), kinds in refused.items())
    return Check(name, "note", f"{why}; has: {ports}", "; ".join(hint for _, hint in refused))


def _smallest(kind: Kind) -> Plug:
    """As attach makes it if it is told nothing else."""
    return Plug("port", "switch", kind, "", "", {"slots": rules.live_slots(1)})


def hook() -> Check:
    """Without, ports of a domain's configuration must be there before it starts."""
    found = hooks.status(hooks.HOOKS)
    if found.state == "installed":
        return Check("libvirt hook", "ok", f"installed: {found.path}")
    if found.state == "foreign":
        return Check("libvirt hook", "note", f"{found.path} is not vpt's", f"less {found.path}")
    return Check(
        "libvirt hook",
        "note",
        f"{found.state}: domains find their ports only while vptd has them",
        as_root("libvirt hook install"),
    )
