# SPDX-License-Identifier: BSD-2-Clause
"""A port and its device in a QEMU that nobody manages, over its QMP socket: together or not at all.

What belongs to the port NAME has the ids vpt-NAME (device), vpt-NAME-net and vpt-NAME-chr, so QEMU itself
remembers which ports it has. A guest may let go of a device after its detach was given up: the rest of the
port is then still there, for the next detach to find.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from vpt.daemon.client import Client
from vpt.daemon.owners import PATTERN, of_qmp
from vpt.errors import ConflictError, GuestError, MissingError, NotFoundError, UsageError, VptError
from vpt.libvirt_plugin import _ram_folder, rules
from vpt.libvirt_plugin._there import device_settings, differing, holder_of, require_common
from vpt.libvirt_plugin._turns import in_turn
from vpt.libvirt_plugin.attach import Attached, Detached, Request, add_to_vptd, make_plug
from vpt.libvirt_plugin.metadata import Plug
from vpt.qemu import RECONNECT_MS
from vpt.qemu.qmp import QmpClosedError, QmpCommandError, QmpSession, QmpSilentError, listener_pid
from vpt.qemu.stale import eventfds, mend

__all__ = ["attach", "detach", "print_diff"]

_DEVICE_S = 15.0
_EVENTFDS_S, _LOOK_S = 5.0, 0.01
_TCG_MSIX_WORKS = (10, 0, 0)
# A chardev without use, by which QEMU remembers that rules.check_spent() applies to it.
_SPENT = "vpt-spent"
# And the likes of vpt-NAME-left.12-7.13-8, by which it remembers what eventfds() found when NAME was to be
# unplugged; vpt-NAME-left: the device has gone, and QEMU was seen to.
_LEFT = re.compile(r"vpt-(.+?)-left((?:\.\d+-\d*)*)")
_GONE = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")


# A command and its arguments.
_Command = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """port_there: vptd has the port, which was made for no VM, and stays.

    steps: the command that adds, and the one that takes it back; in the order of adding.
    """

    plug: Plug
    port_there: bool
    steps: tuple[tuple[_Command, _Command], ...]
    warnings: tuple[str, ...]


def _plan(qemu: QmpSession, path: Path, vptd: Client, request: Request) -> _Plan:
    names = _names(qemu)
    if request.port is not None:
        _require_new(path, vptd, request.port, {*names, *_owned(path, vptd)})
        request = _with_port_there(vptd, request, request.port)
    express = "q35" in str(qemu.execute("qom-get", path="/machine", property="type"))
    plug = make_plug(vptd, request, path.stem, small=express, has=names)
    _require_running(qemu, path)
    _require_own_mac(qemu, plug)
    tcg = not qemu.execute("query-kvm")["enabled"]
    if plug.kind == "vhost-user":
        _require_shared_memory(qemu)
    rules.check_spent(_is_spent(qemu, tcg=tcg), vhost_user=plug.kind == "vhost-user" or _has_vhost_user(qemu))
    bus = None
    if express:
        bus = _free_root_port(qemu)
        rules.check_window(plug, "a machine of type pc")
    no_vectors, milliseconds = tcg and qemu.version < _TCG_MSIX_WORKS, qemu.version >= RECONNECT_MS
    steps = _steps(plug, bus, no_vectors=no_vectors, milliseconds=milliseconds)
    return _Plan(
        plug, request.existing, tuple(steps), (*_warnings(qemu, tcg=tcg), *rules.plug_warnings(plug))
    )


def print_diff(path: Path, vptd: Client, request: Request) -> str:
    """The commands that QEMU would be given, a line each; nothing is done."""
    with QmpSession(path) as qemu:
        if _there(qemu, path, vptd, request) is not None:
            return ""
        plan = _plan(qemu, path, vptd, request)
    added = ({"execute": command, "arguments": arguments} for (command, arguments), _ in plan.steps)
    return "".join(f"{json.dumps(line)}\n" for line in added)


def attach(path: Path, vptd: Client, request: Request) -> Attached:
    """Make the port and plug it into the running VM. On any failure all is as before."""
    _require_text(path)
    with in_turn(vptd.call("daemon.status")["runtime_dir"]), QmpSession(path) as qemu, ExitStack() as undo:
        if (there := _there(qemu, path, vptd, request)) is not None:
            return Attached(str(path), there, ("live",), changed=False)
        _mend_late(qemu, path)
        plan = _plan(qemu, path, vptd, request)
        plug = plan.plug
        if not plan.port_there:
            add_to_vptd(vptd, plug, of_qmp(path))
            undo.callback(_quietly, lambda: vptd.call("port.del", name=plug.name, if_exists=True))
        try:
            with _all_eventfds(qemu, path, plug):
                for add, remove in plan.steps:
                    _execute(qemu, *add)
                    undo.callback(_quietly, partial(_undo, qemu, path, vptd, *remove))
            if plug.name not in _devices_of(qemu):
                raise GuestError(f"QEMU says that {plug.name} is plugged in, and does not have it")
        except QmpSilentError as error:
            # It may go on, and would wait forever, and the VM with it, for a port that has gone meanwhile.
            undo.pop_all()
            raise GuestError(
                f"{error}, so the port {plug.name} stays",
                hint="once QEMU goes on (kill -CONT PID, if it was stopped):"
                f" {vptd.typed('detach', str(path), plug.name)}",
            ) from error
        undo.pop_all()
    return Attached(str(path), plug, ("live",), plan.warnings)


@contextmanager
def _all_eventfds(qemu: QmpSession, path: Path, plug: Plug) -> Iterator[None]:
    """Wait, in the end, until the device has what QEMU reads of it after device_add: eventfds.

    One that came when this connection is closed could get its number; and should the device go when nobody
    mends QEMU, so would the next connection, whose first word would call into freed memory (vpt.qemu.stale).
    """
    if plug.kind != "passthrough" or qemu.execute("query-kvm")["enabled"]:
        yield
        return
    pid = listener_pid(path)
    before = len(eventfds(pid))
    yield
    end = time.monotonic() + _EVENTFDS_S
    # Its own and its peer's, of each vector. Where none can be seen, none can be waited for.
    while before and len(eventfds(pid)) < before + 2 * (2 * plug.pairs + 1) and time.monotonic() < end:
        time.sleep(_LOOK_S)


def _require_text(path: Path) -> None:
    """A port remembers it, and is listed with it."""
    try:
        told = re.fullmatch(PATTERN, of_qmp(path).encode().decode())
    except UnicodeEncodeError:
        told = None
    if told is None:
        raise UsageError(
            f"{str(path.absolute())!r} has a character that is no text",
            hint="start QEMU with another path: -qmp unix:PATH,server=on,wait=off",
        )


def _owned(path: Path, vptd: Client) -> list[str]:
    """Ports of vptd that were made for the VM."""
    owner = of_qmp(path)
    return [port["name"] for port in vptd.call("port.list")["ports"] if port["owner"] == owner]


def _steps(
    plug: Plug, bus: str | None, *, no_vectors: bool, milliseconds: bool
) -> Iterator[tuple[_Command, _Command]]:
    device, net, chardev = f"vpt-{plug.name}", f"vpt-{plug.name}-net", f"vpt-{plug.name}-chr"
    address = {"type": "unix", "data": {"path": plug.socket}}
    backend: dict[str, Any] = {"addr": address, "server": False}
    if plug.kind == "vhost-user":
        backend |= {"reconnect-ms": 1000} if milliseconds else {"reconnect": 1}
    yield (
        ("chardev-add", {"id": chardev, "backend": {"type": "socket", "data": backend}}),
        ("chardev-remove", {"id": chardev}),
    )
    place: dict[str, Any] = {"id": device} | ({"bus": bus} if bus else {})
    if plug.kind == "passthrough":
        what = {"driver": "ivshmem-doorbell", "chardev": chardev, "vectors": 2 * plug.pairs + 1}
        yield ("device_add", place | what), ("device_del", {"id": device})
        return
    yield (
        ("netdev_add", {"type": "vhost-user", "id": net, "chardev": chardev, "queues": plug.pairs}),
        ("netdev_del", {"id": net}),
    )
    what = {"driver": "virtio-net-pci", "netdev": net, "mac": plug.mac, "romfile": ""}
    if plug.pairs > 1:
        what |= {"mq": True, "vectors": 2 * plug.pairs + 2}
    if plug.packed:
        what["packed"] = True
    if no_vectors:
        # Or the VM would end when the guest's driver starts.
        what["vectors"] = 0
    yield ("device_add", place | what), ("device_del", {"id": device})


def _execute(qemu: QmpSession, command: str, arguments: dict[str, Any]) -> None:
    try:
        qemu.execute(command, **arguments)
    except QmpCommandError as error:
        if "Permission denied" in str(error):
            raise MissingError(
                f"QEMU has no permission to use the port's socket: {error}",
                hint="give its group access: start vptd with --group GROUP, attach with --socket-mode 0660",
            ) from error
        raise GuestError(str(error), hint="the VM and the switch are as before") from error


def _undo(qemu: QmpSession, path: Path, vptd: Client, command: str, arguments: dict[str, Any]) -> None:
    if command == "device_del":
        _delete_device(qemu, path, vptd, arguments["id"])
    else:
        qemu.execute(command, **arguments)


def _quietly(action: Callable[[], object]) -> None:
    with suppress(VptError):
        action()


# ---- what must hold ----


def _there(qemu: QmpSession, path: Path, vptd: Client, request: Request) -> Plug | None:
    """The port, where the VM has it just as it is asked for."""
    if request.port not in _devices_of(qemu):
        return None
    port = next((port for port in vptd.call("port.list")["ports"] if port["name"] == request.port), None)
    if port is None or (port["switch"], port["kind"]) != (request.switch, request.kind):
        return None
    device = f"/machine/peripheral/vpt-{request.port}"
    peer = vptd.call("port.show", name=port["name"])["peer"]
    unlike = (
        peer is None
        or peer["pid"] != listener_pid(path)
        or differing(vptd, port, request.settings)
        or (request.packed and not qemu.execute("qom-get", path=device, property="packed"))
    )
    if unlike:
        return None
    settings = device_settings(vptd, request.port)
    runtime_dir = vptd.call("daemon.status")["runtime_dir"]
    return Plug(
        request.port, request.switch, request.kind, port["socket"], runtime_dir, settings, request.packed
    )


def _require_new(path: Path, vptd: Client, name: str, names: Collection[str]) -> None:
    """names: ports of the VM. One is there as well if only a part of it is."""
    if name in names:
        raise ConflictError(
            f"{path} has a port {name!r} already",
            hint="choose another name: --port; or take that one out first:"
            f" {vptd.typed('detach', str(path), name)}",
        )


def _with_port_there(vptd: Client, request: Request, name: str) -> Request:
    """A port that was made for no VM is plugged in as it is."""
    for port in vptd.call("port.list")["ports"]:
        if port["name"] == name:
            require_common(vptd, port, request.switch, request.kind, request.settings)
            return replace(request, existing=True)
    return request


def _require_own_mac(qemu: QmpSession, plug: Plug) -> None:
    """vptd knows its own ports only. QMP has no list of network cards."""
    if plug.mac is not None and f"macaddr={plug.mac.lower()}" in qemu.hmp("info network").lower():
        raise ConflictError(
            f"the VM would have two devices with the MAC address {plug.mac}", hint="choose another: --mac"
        )


def _require_running(qemu: QmpSession, path: Path) -> None:
    status = qemu.execute("query-status")["status"]
    if status != "running":
        raise ConflictError(
            f"{path}: the VM is {status}, and only a running guest takes or lets go of a device",
            hint='continue it: {"execute": "cont"}',
        )


def _require_shared_memory(qemu: QmpSession) -> None:
    if not any(backend.get("share") for backend in qemu.execute("query-memdev")):
        raise ConflictError(
            "the VM's memory is not shared, and a vhost-user port must map it",
            hint="start QEMU with -object memory-backend-memfd,id=mem,size=SIZE,share=on"
            " -machine memory-backend=mem; or use --kind passthrough",
        )
    for item in qemu.execute("qom-list", path="/objects"):
        if item["type"] == "child<memory-backend-file>":
            _require_no_disk(qemu, f"/objects/{item['name']}")


def _require_no_disk(qemu: QmpSession, backend: str) -> None:
    path = qemu.execute("qom-get", path=backend, property="mem-path")
    if qemu.execute("qom-get", path=backend, property="share") and _ram_folder.is_on_disk(path):
        raise ConflictError(
            f"the VM's memory is in a file on a disk, {path}, which could keep vptd waiting",
            hint="start QEMU with -object memory-backend-memfd,id=mem,size=SIZE,share=on, or with its file"
            " in /dev/shm; or use --kind passthrough",
        )


def _free_root_port(qemu: QmpSession) -> str:
    """A root port without device: nothing else of q35 takes one while the VM runs."""
    for bus in qemu.execute("query-pci"):
        for device in bus["devices"]:
            bridge = device.get("pci_bridge")
            if bridge is not None and device["qdev_id"] and not bridge.get("devices"):
                return str(device["qdev_id"])
    raise ConflictError(
        "the VM has no spare pcie-root-port to plug a device into",
        hint="start QEMU with -device pcie-root-port,id=rp0,chassis=1,slot=1",
    )


def _warnings(qemu: QmpSession, *, tcg: bool) -> tuple[str, ...]:
    if not tcg or len(qemu.execute("query-hotpluggable-cpus")) > 1:
        return ()
    return (
        "with one possible CPU, QEMU drops the guest's memory barriers under TCG and wake-ups get lost:"
        " -smp 1,maxcpus=2",
    )


# ---- detach ----


def detach(path: Path, vptd: Client, port: str | None = None) -> Detached:
    """Take a port out of the VM, wait until the guest has let go of it, and delete the port.

    Of a VM that has ended, also while this waits, only the port is left, which knows whose it was.
    """
    with in_turn(vptd.call("daemon.status")["runtime_dir"]):
        owned, ended = _owned(path, vptd), False
        try:
            session = QmpSession(path)
        except (NotFoundError, QmpClosedError):
            if not owned:
                raise
            name, ended = _choose(path, vptd, port, owned), True
        else:
            with session as qemu:
                name = _choose(path, vptd, port, list(dict.fromkeys([*_names(qemu), *owned])))
                try:
                    _unplug(qemu, path, vptd, name)
                except QmpClosedError:
                    ended = True
        return Detached(str(path), name, () if ended else ("live",), _delete_port(path, vptd, name))


def _unplug(qemu: QmpSession, path: Path, vptd: Client, name: str) -> None:
    """Take out what QEMU has of the port; where the guest has let go of the device already, the rest."""
    device, chardev = f"vpt-{name}", f"vpt-{name}-chr"
    if device in _devices(qemu):
        _require_running(qemu, path)
        _delete_device(qemu, path, vptd, device)
    else:
        _mend_late(qemu, path)
        if chardev in _unseen(qemu) and not qemu.execute("query-kvm")["enabled"]:
            _mark_spent(qemu)
    _forget_left(qemu, name)
    # Which of these there are depends on the kind; and a vhost-user netdev takes its chardev along.
    for command, ident in (("netdev_del", f"vpt-{name}-net"), ("chardev-remove", chardev)):
        with suppress(QmpCommandError):
            qemu.execute(command, id=ident)
    if chardev in _chardevs(qemu):
        raise GuestError(
            f"QEMU did not let go of the chardev {chardev}, so the port stays",
            hint=f"try again: {vptd.typed('detach', str(path), name)}",
        )


def _mark_spent(qemu: QmpSession) -> None:
    if _SPENT not in _chardevs(qemu):
        _add_null(qemu, _SPENT)


def _add_null(qemu: QmpSession, ident: str) -> None:
    qemu.execute("chardev-add", id=ident, backend={"type": "null", "data": {}})


def _delete_port(path: Path, vptd: Client, name: str) -> str:
    """Delete what was made for the VM. Else: why it is kept."""
    for port in vptd.call("port.list")["ports"]:
        if port["name"] == name and port["owner"] != of_qmp(path):
            return f"it was not made for {path}; to be rid of it: {vptd.typed('port', 'del', name)}"
    vptd.call("port.del", name=name, if_exists=True)
    return ""


def _names(qemu: QmpSession) -> list[str]:
    """Ports of which the VM has anything."""
    chardevs = map(_port_of, filter(_is_ours, _chardevs(qemu)))
    return list(dict.fromkeys([*_devices_of(qemu), *chardevs]))


def _devices_of(qemu: QmpSession) -> list[str]:
    """Ports of which the VM has the device."""
    return [name.removeprefix("vpt-") for name in _devices(qemu) if name.startswith("vpt-")]


def _devices(qemu: QmpSession) -> list[str]:
    return [item["name"] for item in qemu.execute("qom-list", path="/machine/peripheral")]


def _chardevs(qemu: QmpSession) -> list[str]:
    return [item["label"] for item in qemu.execute("query-chardev")]


def _is_ours(chardev: str) -> bool:
    return chardev.startswith("vpt-") and chardev.endswith("-chr")


def _port_of(chardev: str) -> str:
    return chardev.removeprefix("vpt-").removesuffix("-chr")


def _unused(qemu: QmpSession) -> list[str]:
    """Chardevs of ours that nothing has: those of passthrough ports whose device has gone.

    A vhost-user port's is its netdev's, with or without the device. What query-chardev says of a front-end
    comes late: a device that has gone is freed when all vCPUs have been seen somewhere else.
    """
    users = {*_devices(qemu), *(net.removesuffix("-net") for net in _netdevs(qemu))}
    return [label for label in _chardevs(qemu) if _is_ours(label) and label.removesuffix("-chr") not in users]


def _netdevs(qemu: QmpSession) -> list[str]:
    return re.findall(r"([\w.-]+): index=", qemu.hmp("info network"))


def _unseen(qemu: QmpSession) -> list[str]:
    """Of _unused(), those whose device was taken out without vpt."""
    left = _left(qemu)
    return [chardev for chardev in _unused(qemu) if _port_of(chardev) not in left]


def _is_spent(qemu: QmpSession, *, tcg: bool) -> bool:
    """See rules.check_spent(). After what was taken out without vpt, nobody has marked it."""
    return _SPENT in _chardevs(qemu) or (tcg and bool(_unseen(qemu)))


def _has_vhost_user(qemu: QmpSession) -> bool:
    return "type=vhost-user" in qemu.hmp("info network")


def _choose(path: Path, vptd: Client, port: str | None, names: list[str]) -> str:
    if port is not None:
        if port not in names:
            raise NotFoundError(
                f"{path} has no port {port!r}", hint=f"its vpt ports: {', '.join(names) or 'none'}"
            )
        return port
    if not names:
        attach_one = vptd.typed("attach", str(path), "--switch", "SWITCH")
        raise NotFoundError(f"{path} has no vpt port", hint=f"plug one in: {attach_one}")
    if len(names) > 1:
        raise UsageError(
            f"{path} has several vpt ports: say which", hint=vptd.typed("detach", str(path), names[0])
        )
    return names[0]


def _delete_device(qemu: QmpSession, path: Path, vptd: Client, device: str) -> None:
    """Take it out, and see to what QEMU leaves behind of it."""
    if not _is_ivshmem(qemu, device) or qemu.execute("query-kvm")["enabled"]:
        _ask_guest(qemu, device)
        return
    pid, port = listener_pid(path), device.removeprefix("vpt-")
    were = eventfds(pid, holder_of(vptd, port, pid))
    if were:
        # Now, for the guest may let go of it when nobody waits any more.
        _note_left(qemu, port, were)
    _ask_guest(qemu, device)
    _mend_late(qemu, path, port)
    if not were:
        _mark_spent(qemu)


def _mend_late(qemu: QmpSession, path: Path, gone: str = "") -> None:
    """Mend QEMU after devices that have gone since somebody began to unplug them. gone: a port's that has."""
    there = {*_devices_of(qemu)} - {gone}
    late = {port: were for port, were in _left(qemu).items() if were and port not in there}
    if not late:
        return
    if not mend(qemu.execute, listener_pid(path), chain(*late.values())):
        _mark_spent(qemu)
    for port in late:
        _note_left(qemu, port, [])


def _left(qemu: QmpSession) -> dict[str, list[str]]:
    """As metadata.left_in()."""
    found = (_LEFT.fullmatch(label) for label in _chardevs(qemu))
    return {match[1]: match[2].split(".")[1:] for match in found if match}


def _note_left(qemu: QmpSession, port: str, were: list[str]) -> None:
    _forget_left(qemu, port)
    _add_null(qemu, ".".join([f"vpt-{port}-left", *were]))


def _forget_left(qemu: QmpSession, port: str) -> None:
    for label in _chardevs(qemu):
        if (match := _LEFT.fullmatch(label)) and match[1] == port:
            qemu.execute("chardev-remove", id=label)


def _is_ivshmem(qemu: QmpSession, device: str) -> bool:
    """One that is going this very moment may be."""
    try:
        return "ivshmem" in qemu.execute("qom-get", path=f"/machine/peripheral/{device}", property="type")
    except QmpCommandError:
        return True


def _ask_guest(qemu: QmpSession, device: str) -> None:
    """Ask the guest to let go, and wait for QEMU to say that it has."""
    end = time.monotonic() + _DEVICE_S
    with qemu.listening(*_GONE) as take:
        try:
            qemu.execute("device_del", id=device)
        except QmpCommandError as error:
            if error.error_class == "DeviceNotFound":
                return
            # An earlier request may still be on its way to the guest.
            if "process of unplug" not in str(error):
                raise GuestError(f"{error}, so the port stays", hint="try again later") from error
        while (left := end - time.monotonic()) > 0:
            event = take(left)
            if event is None or event["data"].get("device") != device:
                continue
            if event["event"] == "DEVICE_DELETED":
                return
            break
    raise GuestError(
        f"the guest did not let go of {device} within {_DEVICE_S:.0f} s, so the port stays",
        hint="a guest must be up, with PCI hotplug, to eject a device: try again later",
    )
