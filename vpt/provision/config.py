# SPDX-License-Identifier: BSD-2-Clause
"""A virtual machine as it is asked for: by `vpt guest boot`, and by an entry under vms: of a topology."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from vpt.daemon.config_models import Name

__all__ = ["BUILT", "Disk", "VmConfig", "VmPort", "disk_of"]

BUILT = ("tiny", "debian")
"""Images that vpt builds by itself; every other one is a file, or was built with `vpt guest build`."""

_DISK = re.compile(r"([1-9][0-9]{0,4})([MG])", re.ASCII)
_MAX_PORTS = 16


def _check_address(value: str) -> str:
    if "/" not in value:
        raise ValueError(f"{value!r} has no prefix length; addresses look like 10.0.0.1/24")
    try:
        return str(ipaddress.ip_interface(value))
    except ValueError:
        raise ValueError(f"{value!r} is no address with prefix, such as 10.0.0.1/24") from None


def _check_gateway(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise ValueError(f"{value!r} is no address, such as 10.0.0.1") from None


def _check_disk(value: str) -> str:
    if not _DISK.fullmatch(value) and "/" not in value:
        raise ValueError(f"{value!r} is neither a size such as 4G or 512M, nor a path with a / in it")
    return value


Address = Annotated[str, AfterValidator(_check_address)]
Gateway = Annotated[str, AfterValidator(_check_gateway)]
DiskText = Annotated[str, AfterValidator(_check_disk)]


class Disk(BaseModel):
    """A disk beside the root one: a new empty one of `size` bytes, or an existing image."""

    size: int | None = None
    path: Path | None = None


def disk_of(text: str) -> Disk:
    """What an entry of VmConfig.disks means."""
    found = _DISK.fullmatch(text)
    if found:
        return Disk(size=int(found[1]) << {"M": 20, "G": 30}[found[2]])
    return Disk(path=Path(text))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class VmPort(_Strict):
    """A port that the machine has. Addresses are given to the interface when the guest comes up."""

    port: Name
    address: list[Address] = Field(
        default=[], max_length=16, description="of the guest's interface, with prefix"
    )
    gateway: Gateway | None = Field(default=None, description="default route of the guest")

    @field_validator("address", mode="before")
    @classmethod
    def _one_address(cls, value: Any) -> Any:
        """One needs no list."""
        return [value] if isinstance(value, str) else value


class VmConfig(_Strict):
    """A machine: one to be made, or (domain) one that libvirt has and that ports are attached to."""

    name: Name
    domain: str | None = Field(
        default=None, min_length=1, description="an existing libvirt domain, which the ports are attached to"
    )
    via: Literal["qemu", "libvirt"] = Field(
        default="qemu", description="who runs it: a QEMU of its own, or a libvirt domain that is made"
    )
    connect: str | None = Field(
        default=None, min_length=1, description="libvirt's URI; none: libvirt's default"
    )
    image: str = Field(
        default="tiny", min_length=1, description="tiny, debian, one of vpt guest ls --images, or a path"
    )
    kernel: str | None = Field(
        default=None, min_length=1, description="boot this kernel, not what is on the disk"
    )
    initrd: str | None = Field(default=None, min_length=1, description="for kernel")
    append: str = Field(default="", max_length=1024, description="to the kernel's command line")
    cpus: int = Field(default=1, ge=1, le=64)
    memory_mib: int = Field(default=256, ge=64, le=1 << 20)
    root_gib: int | None = Field(default=None, ge=1, le=4096, description="grow the root disk to this size")
    disks: list[DiskText] = Field(
        default=[], max_length=8, description="further disks: a size such as 4G, or a path"
    )
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    ssh_key: str | None = Field(
        default=None, min_length=1, description="private key to log in with; none: one is made"
    )
    user_data: str | None = Field(
        default=None, min_length=1, description="file for cloud-init, for a cloud image"
    )
    internet: bool = Field(default=False, description="let the guest out by its management interface")
    ports: list[VmPort] = Field(default=[], max_length=_MAX_PORTS)

    @model_validator(mode="before")
    @classmethod
    def _named_after_domain(cls, data: Any) -> Any:
        if isinstance(data, dict) and "name" not in data and isinstance(data.get("domain"), str):
            return {**data, "name": data["domain"]}
        return data

    @field_validator("ports", mode="before")
    @classmethod
    def _plain_names(cls, value: Any) -> Any:
        """A port without anything to say about it may be its name alone."""
        if isinstance(value, list):
            return [{"port": item} if isinstance(item, str) else item for item in value]
        return value

    @model_validator(mode="after")
    def _fits(self) -> VmConfig:
        names = [port.port for port in self.ports]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"the port {twice!r} is listed twice")
        if self.domain is not None:
            self._only_ports()
        if self.initrd is not None and self.kernel is None:
            raise ValueError("initrd is for kernel, which is not given")
        if self.image in BUILT and (self.kernel or self.user_data):
            what = "kernel" if self.kernel else "user_data"
            raise ValueError(f"{what} is for cloud images, not for {self.image}")
        if self.image == "tiny" and self.root_gib:
            raise ValueError("root_gib is for images with a root disk, and tiny runs from memory")
        if self.connect is not None and self.via == "qemu" and self.domain is None:
            raise ValueError("connect is for libvirt: give via: libvirt, or domain")
        return self

    def _only_ports(self) -> None:
        allowed = {"name", "domain", "connect", "ports"}
        for key in self.model_fields_set - allowed:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for machines to be made; the domain {self.domain!r} exists")
        if any(port.address or port.gateway for port in self.ports):
            raise ValueError("addresses are for machines to be made: an existing guest configures itself")

    def located(self, base: Path) -> VmConfig:
        """With its files' paths taken from the folder `base`, so that they hold wherever vpt runs next."""

        def absolute(path: str) -> str:
            return os.path.normpath(base / os.path.expanduser(path))

        update: dict[str, Any] = {
            key: absolute(value)
            for key in ("kernel", "initrd", "ssh_key", "user_data")
            if (value := getattr(self, key)) is not None
        }
        if "/" in self.image:
            update["image"] = absolute(self.image)
        update["disks"] = [absolute(disk) if "/" in disk else disk for disk in self.disks]
        return self.model_copy(update=update)

    @property
    def port_names(self) -> list[str]:
        return [port.port for port in self.ports]

    def in_words(self) -> str:
        """For the steps of a plan."""
        where = f", on {', '.join(self.port_names)}" if self.ports else ""
        if self.domain is not None:
            return f"the domain {self.domain}{where}"
        size = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}, {self.memory_mib} MiB"
        return f"{self.image}, {size}{', by libvirt' if self.via == 'libvirt' else ''}{where}"
