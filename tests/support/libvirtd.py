# SPDX-License-Identifier: BSD-2-Clause
"""A real libvirtd with folders of its own: the system's, or the session's of a user without rights."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.libvirt import Libvirt, need_user, share_capabilities
from vpt.bench.scenarios._libvirtd import QEMU_CONF
from vpt.guest import Image
from vpt.libvirt_plugin import hook
from vpt.libvirt_plugin._connection import binding

NOBODY = 65534
PATIENCE_S = 60.0
_PLACES = {"runtime": "DIR", "cache": "HOME", "config": "HOME"}

_CONF = """
unix_sock_dir = "{root}/sock"
auth_unix_rw = "none"
log_outputs = "3:file:{root}/libvirtd.log"
"""

# It keeps its state in the places that it was built with: they are ours in its own view of the file system.
_START = """
set -e
root=$1; shift
for dir in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /run/libvirt; do
    mkdir -p $dir "$root$dir"
    mount --bind "$root$dir" $dir
done
exec "$@" libvirtd --config "$root/libvirtd.conf" --pid-file "$root/libvirtd.pid"
"""


@contextmanager
def stopped(libvirtd: Libvirtd) -> Iterator[None]:
    """It takes connections and says nothing, as under a debugger or behind a full disk."""
    os.kill(libvirtd.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(libvirtd.pid, signal.SIGCONT)


class Libvirtd:
    """start(), kill() and stop() as often as a test likes; close() leaves no domain, no process and no file.

    session: run as the user nobody, with a libvirt of that user's own.
    The hook is installed where both kinds look for it.
    """

    def __init__(self, image: Image, *, session: bool = False) -> None:
        if os.geteuid() or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
            pytest.skip("needs root and mount namespaces: libvirtd has fixed folders")
        need_user()
        self.user = NOBODY if session else None
        self.root = Path(tempfile.mkdtemp(prefix="vpt-ld-"))
        self.root.chmod(0o755)
        self.uri = f"qemu+unix:///{'session' if session else 'system'}?socket={self.root}/sock/libvirt-sock"
        self.hooks = self.root / "etc/libvirt/hooks"
        hook.install(self.hooks)
        conf = self.root / ("home/config/libvirt/qemu.conf" if session else "etc/libvirt/qemu.conf")
        conf.parent.mkdir(parents=True, exist_ok=True)
        text = QEMU_CONF.format(root=self.root)
        conf.write_text(text.partition('group = "root"')[2] if session else text)
        (self.root / "libvirtd.conf").write_text(_CONF.format(root=self.root))
        for folder in ("sock", "home/runtime", "home/cache", "home/config"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        cache = "home/cache/libvirt/qemu/cache" if session else "var/cache/libvirt/qemu"
        share_capabilities(self.root / cache / "capabilities")
        if session:
            # What the user's own cache would be, in which root's image is not.
            image = replace(image, initrd=Path(shutil.copy(image.initrd, self.root / "initrd")))
            image.initrd.chmod(0o644)
            for path in [self.root, *self.root.rglob("*")]:
                os.chown(path, NOBODY, NOBODY)
        self._image = image
        self._process: subprocess.Popen[bytes] | None = None
        self._libvirt: Libvirt | None = None

    @property
    def libvirt(self) -> Libvirt:
        """Definitions of domains, over a connection of the test's own."""
        assert self._libvirt is not None
        return self._libvirt

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def qemu_pid(self, name: str) -> int:
        """Process of a running domain of the system's libvirtd."""
        return int((self.root / f"run/libvirt/qemu/{name}.pid").read_text())

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def start(self) -> None:
        drop = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        home = self.root / "home"
        places = {f"XDG_{name.upper()}_{kind}": str(home / name) for name, kind in _PLACES.items()}
        self._process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", _START, "sh", str(self.root), *(drop if self.user else ["env"])],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "HOME": str(home), **places} if self.user else None,
        )
        connection = self._connect()
        if self._libvirt is None:
            self._libvirt = Libvirt(self.root, connection, self._image, user=self.user)
        self._libvirt.connection = connection

    def _connect(self) -> Any:
        libvirt = binding()

        assert self._process is not None
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return libvirt.open(self.uri)
            except libvirt.libvirtError as error:
                why = str(error)
            assert self._process.poll() is None, f"libvirtd ended: {why}"
            assert time.monotonic() < end, f"libvirtd does not answer: {why}"
            time.sleep(0.1)

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    def kill(self) -> None:
        """kill -9. Its domains go on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        import libvirt

        if self._process is not None:
            if self.ended:
                self.start()
            connection = self.libvirt.connection
            for domain in connection.listAllDomains():
                with suppress(libvirt.libvirtError):
                    domain.destroy()
                with suppress(libvirt.libvirtError):
                    domain.undefine()
            with suppress(libvirt.libvirtError):
                connection.close()
            self.stop()
        shutil.rmtree(self.root, ignore_errors=True)
