#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause
# vpt's hook for libvirt's QEMU driver. Written by: vpt libvirt hook install
"""Bring a domain's vpt ports up before it starts, and take them down after it has stopped.

libvirt runs a copy of this file, as root or as the user whose session it is, with the domain's XML on
standard input: standard library only. It never calls libvirt, which waits for it. What it writes to standard
error is in the error that the user sees when the domain does not start.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from typing import Any
from xml.etree import ElementTree

# Runtime dir of its vptd, the socket that QEMU will connect to, parameters of port.add.
Ports = list[tuple[str, str, dict[str, Any]]]

NAMESPACE = "{urn:vpt:domain:1}"
FIXED = ("name", "switch", "kind", "socket", "runtime_dir")
NUMBERS = ("pairs", "mtu", "slots", "buf_size")
ANSWER_S = 10.0


class HookError(Exception):
    """What the user is to be told: what is wrong, and what helps."""


def uri() -> str:
    """Of the libvirt that runs this. Who reads a hint may ask another one by default."""
    return f"qemu:///{'session' if os.geteuid() else 'system'}"


def ports_of(name: str, text: bytes) -> Ports:
    """The ports that the metadata names."""
    found: Ports = []
    domain = ElementTree.fromstring(text)
    # As vpt/daemon/owners.py has it.
    which = f"session-{os.geteuid()}" if os.geteuid() else "system"
    owner = f"libvirt:{which}:{domain.findtext('uuid')}"
    for element in domain.iterfind(f"metadata/{NAMESPACE}ports/{NAMESPACE}port"):
        params = settings_in(name, element)
        runtime_dir, path = params.pop("runtime_dir"), params["socket"]
        if path == f"{runtime_dir}/ports/{params['name']}.sock":
            # Where vptd puts it if it is told nothing.
            del params["socket"]
        # The device's, not the port's.
        params.pop("packed", None)
        if "policy" in params:
            params["policy"] = {"kind": params["policy"]}
        found.append((runtime_dir, path, {**params, "owner": owner}))
    return found


def settings_in(name: str, element: ElementTree.Element) -> dict[str, Any]:
    """What one port's element says. HookError: somebody has damaged it."""
    found: dict[str, Any] = {key.replace("-", "_"): value for key, value in element.attrib.items()}
    wrong = [f"no {key.replace('_', '-')}" for key in FIXED if key not in found]
    numbers = {key: found[key] for key in NUMBERS if key in found}
    wrong += [f"{key} {value!r}" for key, value in numbers.items() if not value.isdecimal()]
    if wrong:
        port = found.get("name", "?")
        raise HookError(
            f"the metadata of {name} is damaged: vpt port {port} has {', '.join(wrong)};"
            f" mend it: {shlex.join(['virsh', '-c', uri(), 'edit', name])}"
        )
    return found | {key: int(value) for key, value in numbers.items()}


def call(runtime_dir: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """What a vptd answers to a request. HookError: it is not there, or refuses."""
    path = f"{runtime_dir}/vptd.sock"
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                answer = json.loads(answers.readline())
    except PermissionError as error:
        raise HookError(
            f"no permission to use {path}; join the group that this shows: ls -l {path}"
        ) from error
    except (OSError, ValueError) as error:
        raise HookError(
            f"vptd does not answer at {path} ({error});"
            f" start it: {shlex.join(['vpt', '--runtime-dir', runtime_dir, 'daemon', 'start'])}"
        ) from error
    if "error" in answer:
        hint = (answer["error"].get("data") or {}).get("hint")
        raise HookError(answer["error"]["message"] + (f"; {hint}" if hint else ""))
    result: dict[str, Any] = answer["result"]
    return result


def bring_up(name: str, ports: Ports) -> None:
    """All ports, or an error that says how to start the domain all the same.

    One that is nobody's (a topology's, or made by hand) is used as it is: its settings are not the domain's.
    """
    for runtime_dir, path, params in ports:
        try:
            if not is_common(call(runtime_dir, "port.list", {})["ports"], path, params):
                call(runtime_dir, "port.add", {**params, "may_exist": True})
        except HookError as error:
            port = params["name"]
            detach = shlex.join(["vpt", "detach", name, port, "--config", "--connect", uri()])
            raise HookError(f"vpt port {port} of {name}: {error}; to start without it: {detach}") from error


def is_common(there: list[dict[str, Any]], path: str, params: dict[str, Any]) -> bool:
    """Is the port that the domain's device needs there, and no VM's?"""
    wanted = (params["name"], params["kind"], path, None)
    return wanted in [(port["name"], port["kind"], port["socket"], port["owner"]) for port in there]


def take_down(name: str, ports: Ports) -> None:
    """What can be taken down. The domain has ended, whatever goes wrong here.

    A port that was not made for the domain (by a topology, or by hand) stays.
    """
    for runtime_dir, _, params in ports:
        try:
            there = {port["name"]: port["owner"] for port in call(runtime_dir, "port.list", {})["ports"]}
            if there.get(params["name"]) == params["owner"]:
                call(runtime_dir, "port.del", {"name": params["name"], "if_exists": True})
        except HookError as error:
            print(f"vpt: {name}: {error}", file=sys.stderr)


def main(argv: list[str]) -> int:
    """Exit status. Anything but 0 counts when a domain is about to start, and only then."""
    name, operation = [*argv[1:3], "", ""][:2]
    # Not "reconnect", above all: libvirt kills a running domain whose hook fails there.
    if operation not in ("prepare", "release"):
        return 0
    try:
        ports = ports_of(name, sys.stdin.buffer.read())
        if operation == "release":
            take_down(name, ports)
        else:
            bring_up(name, ports)
    except (HookError, ElementTree.ParseError) as error:
        print(f"vpt: {error}", file=sys.stderr)
        return 1 if operation == "prepare" else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
