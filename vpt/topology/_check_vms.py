# SPDX-License-Identifier: BSD-2-Clause
"""What can be wrong with the machines of a topology beyond each key by itself."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping

from vpt.daemon.models import PortConfig
from vpt.errors import VptError
from vpt.provision.config import BUILT, VmConfig
from vpt.topology._yaml import Path, Place, Problems

__all__ = ["VmChecks"]

_PLUGGABLE = ("vhost-user", "passthrough")
_FILES = ("kernel", "initrd", "ssh_key", "user_data")


class VmChecks:
    """place: of what is at a path of the file. ports: that the file has, by name."""

    def __init__(
        self, place: Callable[[Path], Place], problems: Problems, ports: Mapping[str, PortConfig]
    ) -> None:
        self._place = place
        self._problems = problems
        self._ports = ports
        self._names: dict[str, Place] = {}
        self._domains: dict[tuple[str | None, str], Place] = {}
        self._claimed: dict[str, str] = {}

    def one(self, path: Path, vm: VmConfig) -> None:
        """Look at the next machine; `path` is of its entry."""
        self._check_name(path, vm)
        for i, port in enumerate(vm.port_names):
            self._check_port((*path, "ports", i), vm, port)
        self._check_macs(path, vm)
        if vm.domain is None:
            self._check_files(path, vm)

    def _check_name(self, path: Path, vm: VmConfig) -> None:
        key = "name" if self._place((*path, "name")) != self._place(path) else "domain"
        place = self._place((*path, key))
        if (first := self._names.setdefault(vm.name, place)) is not place:
            self._problems.add(
                place, f"there are two machines of the name {vm.name!r}", f"the other is in line {first.line}"
            )
        if vm.domain is None:
            return
        place = self._place((*path, "domain"))
        if (first := self._domains.setdefault((vm.connect, vm.domain), place)) is not place:
            self._problems.add(
                place,
                f"the domain {vm.domain!r} is there twice",
                f"list all its ports in line {first.line}",
            )

    def _check_port(self, path: Path, vm: VmConfig, name: str) -> None:
        place = self._place((*path, "port"))
        port = self._ports.get(name)
        if port is None:
            close = difflib.get_close_matches(name, self._ports, n=1)
            hint = f"did you mean {close[0]}?" if close else f"add it under ports: - name: {name}"
            what = f"machine {vm.name!r} has a port that the file does not have: {name!r}"
            self._problems.add(place, what, hint)
            return
        if (other := self._claimed.setdefault(name, vm.name)) != vm.name:
            self._problems.add(
                place,
                f"machine {vm.name!r} has the port {name!r} of machine {other!r}",
                "each needs a port of its own; with count, use {n} in it",
            )
        if port.kind not in _PLUGGABLE:
            self._problems.add(
                place,
                f"port {name!r} is of kind {port.kind}, and no machine can be plugged into that",
                f"a machine's port has the kind {' or '.join(_PLUGGABLE)}",
            )
        elif port.kind == "passthrough" and port.mac is None:
            self._problems.add(
                place,
                f"the passthrough port {name!r} has no mac, by which the guest knows which interface it is",
                "add to the port: mac: 52:54:00:...",
            )

    def _check_macs(self, path: Path, vm: VmConfig) -> None:
        """On one switch they differ anyway; a machine is to know its interfaces by them."""
        first: dict[str, str] = {}
        for i, name in enumerate(vm.port_names):
            port = self._ports.get(name)
            if port and port.mac and (other := first.setdefault(port.mac, name)) != name:
                self._problems.add(
                    self._place((*path, "ports", i, "port")),
                    f"machine {vm.name!r} has two ports with the mac {port.mac}: {other!r} and {name!r}",
                    "give one of them another",
                )

    def _check_files(self, path: Path, vm: VmConfig) -> None:
        if vm.image not in BUILT:
            self._check_image((*path, "image"), vm.image)
        for key in _FILES:
            file = getattr(vm, key)
            if file is not None and not os.path.isfile(file):
                self._problems.add(
                    self._place((*path, key)),
                    f"{key}: there is no file {file}",
                    "a path from the file's folder",
                )
        for i, disk in enumerate(vm.disks):
            if "/" in disk and not os.path.isfile(disk):
                self._problems.add(
                    self._place((*path, "disks", i)), f"there is no disk {disk}", "a new empty one: 4G"
                )

    def _check_image(self, path: Path, image: str) -> None:
        from vpt.provision.images import find

        if "/" in image:
            if not os.path.isfile(image):
                self._problems.add(
                    self._place(path), f"there is no image {image}", "tiny, debian, or a path of a disk image"
                )
            return
        try:
            find(image)
        except VptError as error:
            self._problems.add(self._place(path), f"unknown image {image!r}", error.hint or error.message)
