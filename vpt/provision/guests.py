# SPDX-License-Identifier: BSD-2-Clause
"""Guests that live on when the command that made them has ended: made, started, stopped, removed, waited for.

Whatever fails on the way leaves nothing behind: ports, processes, files, domains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal

from vpt.daemon.client import Client
from vpt.daemon.models import PortConfig
from vpt.daemon.runtime import RuntimePaths
from vpt.errors import ConflictError, ExistsError, MissingError, NotFoundError, VptError
from vpt.hints import virsh, vpt
from vpt.libvirt_plugin.attach import free_name, random_mac
from vpt.provision import _attached, _domain, _qemu, ready
from vpt.provision._found import found_domains
from vpt.provision.config import VmConfig, VmPort
from vpt.provision.images import BootImage, Progress
from vpt.provision.machine import (
    Port,
    choose_accel,
    free_tcp_port,
    image_for,
    look_up,
    machine_for,
    prepare,
)
from vpt.provision.record import Record, Store

__all__ = ["GuestView", "Guests", "boot_time_limit"]

State = Literal["running", "stopped"]

_TRIES = 5
# Seconds until a guest is up under TCG on a busy machine; what is faster does not wait so long.
_BOOT_S = {"tiny": 90.0, "debian": 300.0, "cloud": 600.0}


@dataclass(frozen=True)
class GuestView:
    """A guest as `vpt guest ls` shows it."""

    record: Record
    state: State
    pid: int | None = None


def boot_time_limit(record: Record) -> float:
    """Seconds that this guest may take until it is up, unless somebody says otherwise."""
    return _BOOT_S[record.boot.kind if record.boot is not None else "cloud"]


def _quiet(_text: str) -> None:
    pass


def _not_ours(config: VmConfig, verb: str) -> ConflictError:
    """verb: virsh's, for what was to be done."""
    assert config.domain is not None
    return ConflictError(
        f"{config.name} is a domain that libvirt looks after", hint=virsh(config.connect, verb, config.domain)
    )


class Guests:
    """The guests of one vptd. connect: a new connection to it; used for guests with ports only."""

    def __init__(self, paths: RuntimePaths, connect: Callable[[], Client]) -> None:
        self._paths = paths
        self._connect = connect
        self.store = Store(paths.state)
        self._found: dict[str, VmConfig] = {}
        # Of machines that went with their ports left for a successor: the ports made for them.
        self._left: dict[str, list[str]] = {}

    # ---- looking ----

    def view(self, name: str) -> GuestView:
        """NotFoundError: there is none of that name."""
        record = self.store.load(name)
        pid = _qemu.pid_of(self.store.folder(name)) if self._by_qemu(record) else None
        return GuestView(record, "running" if pid or self._is_running(record) else "stopped", pid)

    def views(self) -> list[GuestView]:
        """All of them."""
        return [self.view(name) for name in self.store.names()]

    def configs(
        self, ports: Mapping[str, str | None], named: Sequence[VmConfig] = ()
    ) -> tuple[tuple[VmConfig, ...], tuple[str, ...]]:
        """All machines that vpt made or plugged in, a domain's with the ports that it really has.

        Those of its record where libvirt is down, which keeps nobody from working with other machines.
        And what could not be found out, in words. ports: all of vptd, with their owners.
        named: what a topology calls domains that have no record.
        """
        known = [self._as_it_is(self.store.load(name), ports) for name in self.store.names()]
        found, unknown = found_domains(ports, str(self._paths.runtime), known, named)
        self._found = {vm.name: vm for vm in found}
        return (*known, *found), tuple(unknown)

    def _as_it_is(self, record: Record, ports: Mapping[str, str | None]) -> VmConfig:
        config = record.config
        if config.domain is None:
            return config
        try:
            has = _attached.attached_ports(config, record.runtime_dir)
        except NotFoundError:
            return config.model_copy(update={"ports": []})
        except MissingError:
            return config
        # What was made for the domain is its own, wherever it has it.
        own = [name for name in has.anywhere if ports.get(name) == has.owner]
        there = {*has.everywhere, *own}
        more = [VmPort(port=name) for name in own if name not in config.port_names]
        return config.model_copy(update={"ports": [*(p for p in config.ports if p.port in there), *more]})

    def is_stopped(self, name: str) -> bool:
        """False for what has no record: only libvirt starts and stops that."""
        return name not in self._found and self.view(name).state == "stopped"

    @staticmethod
    def check(config: VmConfig) -> None:
        """What can be said before anything is done. NotFoundError: no such domain."""
        if config.domain is not None:
            _attached.check_domain(config)

    @staticmethod
    def _by_qemu(record: Record) -> bool:
        return record.config.domain is None and record.config.via == "qemu"

    def _is_running(self, record: Record) -> bool:
        if record.config.domain is not None:
            return _attached.is_running(record.config)
        if record.config.via == "libvirt":
            return _domain.is_running(record, self.store.folder(record.name))
        return _qemu.pid_of(self.store.folder(record.name)) is not None

    # ---- making ----

    def boot(
        self, config: VmConfig, new_ports: Iterable[PortConfig] = (), progress: Progress = _quiet
    ) -> Record:
        """Make a guest and start it; wait() waits until it is up.

        new_ports: those that `config` names and that are to be made first; gone when the guest goes.
        ExistsError: there is one of that name.
        """
        new_ports = list(new_ports)
        self._check_new(config)
        image = None if config.domain is not None else image_for(config, progress)
        accel = "tcg" if config.domain is not None else choose_accel(config, progress)
        record = Record(
            config=config,
            runtime_dir=str(self._paths.runtime),
            created=time.time(),
            accel=accel,
            made_ports=[
                *(port.name for port in new_ports),
                *(name for name in self._left.get(config.name, ()) if name in config.port_names),
            ],
        )
        with self.store.changing(), self._vptd(needed=bool(config.ports)) as vptd, ExitStack() as undo:
            self._check_new(config)
            for port in new_ports:
                assert vptd is not None, "config names the new ones too"
                vptd.call("port.add", **port.model_dump(exclude_defaults=True))
                undo.callback(_quietly, _delete_port, self._connect, port.name)
            ports = look_up(vptd, self._without_what_it_has(config)) if vptd is not None else []
            record.macs.update({port.name: port.mac for port in ports})
            self.store.save(record)
            undo.callback(self.store.remove, record.name)
            if image is not None:
                record = prepare(record, image, self.store.folder(record.name))
                undo.callback(_quietly, self._end, record)
                record = self._start(record, image, ports)
            elif vptd is not None:
                _attached.attach(config, ports, vptd)
            self.store.save(record)
            undo.pop_all()
        return record

    def _without_what_it_has(self, config: VmConfig) -> VmConfig:
        """Only the ports that an existing domain is still to be given."""
        if config.domain is None:
            return config
        there = _attached.attached_ports(config, str(self._paths.runtime))
        return config.model_copy(
            update={"ports": [p for p in config.ports if p.port not in there.everywhere]}
        )

    def _vptd(self, *, needed: bool) -> AbstractContextManager[Client | None]:
        return self._connect() if needed else nullcontext()

    def _typed(self, *words: str) -> str:
        """For a hint: what to type to have `vpt guest WORDS` mean these guests."""
        return vpt("guest", *words, runtime=self._paths.runtime)

    def _check_new(self, config: VmConfig) -> None:
        if self.store.exists(config.name):
            raise ExistsError(
                f"there is a guest {config.name!r} already",
                hint=f"{self._typed('ls')}; to be rid of it: {self._typed('rm', config.name)}",
            )
        self.check(config)

    def start(self, name: str) -> Record:
        """Start a guest that was stopped. Nothing happens to one that runs."""
        with self.store.changing():
            record = self.store.load(name)
            if record.config.domain is not None:
                raise _not_ours(record.config, "start")
            if self._is_running(record):
                return record
            with self._vptd(needed=bool(record.config.ports)) as vptd:
                ports = look_up(vptd, record.config) if vptd is not None else []
            assert record.boot is not None, "what is no domain has an image"
            record = self._start(record, record.boot, ports)
            self.store.save(record)
        return record

    def _start(self, record: Record, image: BootImage, ports: list[Port]) -> Record:
        """Start it; on another TCP port than before, if that one has been taken meanwhile."""
        folder = self.store.folder(record.name)
        for left in reversed(range(_TRIES)):
            machine = machine_for(record, image, ports, folder)
            try:
                if record.config.via == "libvirt":
                    folder.console.unlink(missing_ok=True)
                    _domain.start(record, machine, ports, folder)
                else:
                    _qemu.start(machine, folder, record.runtime_dir)
            except VptError as error:
                if left == 0 or "host forwarding" not in error.message:
                    raise
                record = record.model_copy(update={"ssh_port": free_tcp_port()})
            else:
                return record
        raise AssertionError("the last try returns or raises")

    # ---- being up ----

    def wait(self, name: str, timeout_s: float | None = None) -> None:
        """Until it is up: the sign on its console, then its ssh server's banner. Not for existing domains."""
        record = self.store.load(name)
        if record.config.domain is not None:
            return
        ready.wait_ready(
            name,
            self.store.folder(name).console,
            record.ssh_port,
            lambda: self._is_running(record),
            boot_time_limit(record) if timeout_s is None else timeout_s,
        )

    def reachable(self, name: str) -> Record:
        """The guest's record, to log in by. ConflictError: it does not run."""
        record = self.store.load(name)
        if record.config.domain is not None:
            raise ConflictError(
                f"{name} is a domain that vpt did not make, and has no key for",
                hint="log in as you always do",
            )
        if not self._is_running(record):
            raise ConflictError(f"guest {name} does not run", hint=record.typed("boot"))
        return record

    # ---- ending ----

    def stop(self, name: str, grace_s: float) -> bool:
        """Shut it down. False if it did not run. grace_s: as long as it may take; then the plug is pulled."""
        record = self.store.load(name)
        if record.config.domain is not None:
            raise _not_ours(record.config, "shutdown")
        if not self._is_running(record):
            return False
        # The tiny guest runs from memory, and has nobody who would hear a power button.
        grace_s = 0 if record.boot is not None and record.boot.kind == "tiny" else grace_s
        if record.config.via == "libvirt":
            _domain.stop(record, self.store.folder(name), grace_s=grace_s)
        else:
            folder = self.store.folder(name)
            _qemu.stop(folder, grace_s=grace_s)
            _qemu.clean(folder)
        return True

    def remove(self, name: str, *, keep_ports: bool = False) -> None:
        """End it, and take away all that it has: its process or domain, its files, the ports made for it.

        keep_ports: they are for the machine of that name that is made next, and go with that one.
        """
        if name in self._found:
            _attached.detach(self._found[name], self._found[name].port_names)
            return
        with self.store.changing():
            record = self.store.load(name)
            self._left[name] = record.made_ports if keep_ports else []
            made = [] if keep_ports else record.made_ports
            # Before anything is gone: without vptd its ports would stay.
            with self._vptd(needed=bool(made)) as vptd:
                self._end(record)
                if vptd is not None:
                    for port in made:
                        vptd.call("port.del", name=port, if_exists=True)
            self.store.remove(name)

    def change_ports(self, config: VmConfig, add: list[str], drop: list[str]) -> None:
        """Of an existing domain: attach these ports, detach those. `config` is what it then has."""
        with self.store.changing():
            record = self._record_of(config)
            _attached.detach(config, drop)
            wanted = config.model_copy(update={"ports": [p for p in config.ports if p.port in add]})
            with self._connect() as vptd:
                _attached.attach(config, look_up(vptd, wanted), vptd)
            self.store.save(record.model_copy(update={"config": config}))

    def _record_of(self, config: VmConfig) -> Record:
        """Of a domain that has none yet, a new one: from here on it is the topology's."""
        if config.name in self._found:
            return Record(config=config, runtime_dir=str(self._paths.runtime), created=time.time())
        return self.store.load(config.name)

    def _end(self, record: Record) -> None:
        folder = self.store.folder(record.name)
        if record.config.domain is not None:
            _attached.detach(record.config, record.config.port_names)
        elif record.config.via == "libvirt":
            _domain.stop(record, folder, grace_s=0)
            _domain.remove(record, folder)
        else:
            _qemu.stop(folder, grace_s=0)

    # ---- names ----

    def port_for(
        self, name: str, switch: str, kind: Literal["vhost-user", "passthrough"], **settings: Any
    ) -> PortConfig:
        """A new port for a guest, named after it, with a random address if it is given none."""
        with self._connect() as vptd:
            taken = {port["name"] for port in vptd.call("port.list")["ports"]}
            taken |= {found["name"] for found in vptd.call("switch.list")["switches"]}
        settings.setdefault("mac", random_mac())
        return PortConfig(name=free_name(name, taken), switch=switch, kind=kind, **settings)


def _delete_port(connect: Callable[[], Client], name: str) -> None:
    with connect() as vptd:
        vptd.call("port.del", name=name, if_exists=True)


def _quietly(action: Callable[..., object], *args: object) -> None:
    """For undoing: what made us undo is what the user must hear of."""
    with suppress(Exception):
        action(*args)
