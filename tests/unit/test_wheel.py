# SPDX-License-Identifier: BSD-2-Clause
"""The wheel that ci/wheel makes runs where there is neither a compiler nor a library of vpt's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.native,
    pytest.mark.timeout(600),
    pytest.mark.needs("gcc", "py:auditwheel"),
]

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked: what pip does with one, less the scripts."""
    folder = tmp_path_factory.mktemp("wheel")
    made = subprocess.run(
        [TOP / "ci/wheel", folder], capture_output=True, text=True, check=False, timeout=500
    )
    assert made.returncode == 0, made.stderr[-2000:]
    path = Path(made.stdout.strip())
    assert re.fullmatch(r"vpt-[\d.]+-cp311-abi3-manylinux_\d+_\d+_\w+\.whl", path.name), (
        "any Python from 3.11"
    )
    with zipfile.ZipFile(path) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


def _run(wheel: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """vpt of the wheel, with what it depends on from here, and no program at all on PATH."""
    path = os.pathsep.join([str(wheel), sysconfig.get_paths()["platlib"]])
    return subprocess.run(
        [sys._base_executable, "-m", "vpt.cli", *arguments],  # type: ignore[attr-defined]
        env={"PATH": "/nonexistent", "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "HOME": str(wheel)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_its_data_plane_moves_packets_without_a_compiler(wheel: Path) -> None:
    done = _run(wheel, "doctor", "--no-boot", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["data plane"]["verdict"] == "ok", done.stdout
    assert "none lost" in checks["data plane"]["what"]


@pytest.mark.needs("git")
def test_its_results_name_the_commit_that_it_was_built_from(wheel: Path) -> None:
    """Where there is only the wheel, and neither the checkout nor git."""
    git = ["git", "-c", "safe.directory=*", "-C", str(TOP), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    done = _run(wheel, "bench", "run", "switch-copy", "--quick", "--at", "bytes=64", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["revision"]["commit"] == (head or "unknown")


def test_it_brings_its_libraries_along(wheel: Path) -> None:
    (extension,) = wheel.glob("vpt/_vpt*.so")
    read = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", read))
    system = {"libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    assert {name for name in needed - system if not list(wheel.glob(f"vpt.libs/{name}"))} == set()


@pytest.mark.parametrize(
    "path",
    [
        "vpt/_data/guest-driver/linux/Kbuild",
        "vpt/_data/guest-driver/micro/boot.S",
        "vpt/_data/guest-driver/micro/micro.elf",
        "vpt/_data/include/vpt/abi.h",
        "vpt/_data/revision.json",
        "*.data/data/share/man/man1/vpt.1",
        "*.data/data/share/vpt/systemd/vptd.service",
        "*.data/data/share/vpt/systemd/vptd.socket",
        "vpt/py.typed",
    ],
)
def test_it_has_what_goes_with_the_program(wheel: Path, path: str) -> None:
    assert list(wheel.glob(path))
