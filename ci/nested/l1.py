# SPDX-License-Identifier: BSD-2-Clause
"""A Linux VM (L1) with Debian's QEMU and the built wheel runs `vpt bench run`, with the micro guest as L2.

Its kernel and first process are those of vpt's own guests, its root is a file system of Debian's packages, as
they are unpacked. These and the wheel are made again only if what goes into them changed. L1 has no network.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vpt.cli._common import stoppable
from vpt.errors import GuestError, MissingError, TimeoutExpired, VptError
from vpt.guest import READY_MARK, Guest, Image, build_image, cache_dir
from vpt.qemu import Accel, find_qemu, probe_accel
from vpt.revision import of_checkout

TOP = Path(__file__).resolve().parents[2]
WORK = TOP / "build/nested"
#: What L1 is made of, beside vpt.
PACKAGES = ("python3-minimal", "libpython3-stdlib", "qemu-system-x86")
SOURCES = ("vpt", "backend_c", "guest-driver", "packaging", "meson.build", "meson.options", "pyproject.toml")
#: Of the kernel: the two disks, and KVM for what this machine's processor, or an emulated one, is.
MODULES = ("virtio_blk", "ext4", "kvm_intel", "kvm_amd")
MEMORY_MIB = 2048
BOOT_S = 300.0
#: For a command in an L1 that may be emulated on CPUs that others keep busy.
ANSWER_S = 120.0
#: How much to measure. Emulated, a point takes half a minute on two idle CPUs.
THOROUGH = ("--repetitions", "3", "--scale", "0.3")
FUNCTIONAL = ("--repetitions", "1")
#: The points that ci/baselines are about: batches, saturation, paced rates; two lengths of switch-copy.
FEW = (
    "load=saturation", "load=", "rate=1000", "rate=10000", "rate=100000", "rate=",
    "bytes=64", "bytes=1500", "bytes=",
)  # fmt: skip
#: What keeps an L1 going that the TCG of Debian's QEMU (7.2) emulates. A virtual machine that does
#: nothing: KVM rewrites the scheduler's code when the first one comes and when the last one goes, and
#: TCG may go on with what it has translated meanwhile; then both CPUs meet, for ever, a breakpoint that
#: is not there any more. And each CPU wakes the other now and then, for one that slept was seen not to
#: wake: interrupts that come while a guest is entered or left seem to get lost, and any later one brings
#: them back.
COMPANY = """\
import fcntl, os, time
kvm = os.open("/dev/kvm", os.O_RDWR)
vm = fcntl.ioctl(kvm, 0xAE01, 0)  # KVM_CREATE_VM
fcntl.ioctl(vm, 0xAE60)  # KVM_CREATE_IRQCHIP
vcpu = fcntl.ioctl(vm, 0xAE41, 0)  # KVM_CREATE_VCPU
for cpu in 0, 1:
    there, here = os.pipe()
    if not os.fork():
        os.sched_setaffinity(0, {cpu})
        while True:
            time.sleep(0.25)
            os.write(here, b".")
    if not os.fork():
        os.sched_setaffinity(0, {1 - cpu})
        while True:
            os.read(there, 1)
print("there", flush=True)
os.wait()
"""
#: Of an emulated L1 that falls nevertheless: TCG's AMD-V does so in one run of five or ten.
TRIES = 3
#: It says each step that it begins. How long all of them take is up to what else this machine does.
STEP_S = {"kvm": 300.0, "tcg": 600.0}
EMULATED = "L1 is emulated: times mean nothing. Only counts are judged, and that all of it works."
NESTED = "the module's parameter nested has to be 1 (modprobe kvm_intel nested=1); or: ci/nested/bench tcg"
PACK = "test -s /l1/tmp/result.json && gzip -c /l1/tmp/result.json | base64"
IN_L1 = "env PATH=/bin:/usr/bin HOME=/root PYTHONPATH=/payload/site PYTHONDONTWRITEBYTECODE=1 /bin/chroot /l1"


def say(text: str) -> None:
    print(f"l1: {text}", file=sys.stderr, flush=True)


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VptError(f"{argv[0]} failed:\n{done.stderr.strip()}", hint=" ".join(map(str, argv)))
    return done.stdout


def digest(parts: Iterable[bytes]) -> str:
    h = hashlib.sha256(Path(__file__).read_bytes())
    for part in parts:
        h.update(len(part).to_bytes(8) + part)
    return h.hexdigest()[:16]


def kept(name: str, key: str) -> tuple[Path, bool]:
    """Where the thing of that key lies, and whether it is there already. Older ones of its name go."""
    path = WORK / f"{key}-{name}"
    for old in WORK.glob(f"*-{name}"):
        if old != path:
            old.unlink()
    return path, path.exists()


def root_disk() -> Path:
    """Debian's packages in a file system; mmdebstrap needs neither root nor a chroot to unpack them."""
    policy = run("apt-cache", "policy", *PACKAGES)
    versions = [line.strip() for line in policy.splitlines() if "Candidate:" in line]
    path, there = kept("root.ext4", digest([*(v.encode() for v in versions)]))
    if there:
        return path
    release = Path("/etc/os-release").read_text().splitlines()
    suite = next(line.partition("=")[2] for line in release if line.startswith("VERSION_CODENAME="))
    say(f"making L1's root from Debian {suite}")
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    in_root = (
        'mkdir -p "$1/payload" "$1/proc" "$1/sys" "$1/dev" "$1/tmp" "$1/run"',
        'ldconfig -r "$1"',
        f'mke2fs -q -t ext4 -d "$1" "{fresh}" 1G',
    )
    options = ["--quiet", "--variant=extract", "--skip=chroot/mount", f"--include={','.join(PACKAGES)}"]
    run("mmdebstrap", *options, *(f"--extract-hook={hook}" for hook in in_root), suite, "/dev/null")
    fresh.replace(path)
    return path


def sources() -> Iterable[bytes]:
    for name in SOURCES:
        found = TOP / name
        for path in sorted(found.rglob("*")) if found.is_dir() else [found]:
            if path.is_file() and "__pycache__" not in path.parts:
                yield str(path.relative_to(TOP)).encode()
                yield path.read_bytes()


def payload_disk() -> Path:
    """The wheel as pip installs it, with what it needs, in a tar file that L1 reads from a disk."""
    # The wheel knows its commit, which may be another though no source is.
    path, there = kept("payload.tar", digest([json.dumps(of_checkout(TOP / "vpt")).encode(), *sources()]))
    if there:
        return path
    say("building the wheel")
    wheel = run(TOP / "ci/wheel", WORK).strip()
    site = WORK / "site"
    shutil.rmtree(site, ignore_errors=True)
    # For L1's Python, which is Debian's.
    python = run("/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    like = ("--python-version", python, "--only-binary", ":all:")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--target", site, *like, wheel)
    fresh = path.with_suffix(".new")
    with tarfile.open(fresh, "w") as tar:
        tar.add(site, "site")
    fresh.replace(path)
    return path


def disk(name: str, file: Path) -> list[str]:
    drive = f"if=none,id={name},format=raw,snapshot=on,file={file}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]


def accelerator(asked: str, image: Image) -> Accel:
    if asked == "tcg":
        return Accel("tcg", "asked for")
    found = probe_accel(
        image.kernel.vmlinuz, image.initrd, find_qemu(), marker=READY_MARK, cache=cache_dir() / "nested"
    )
    if asked == "kvm" and found.name != "kvm":
        raise MissingError(f"L1 was asked to run under KVM: {found.why}", hint="ci/nested/bench tcg")
    return found


class NoKvmError(MissingError):
    """L1's guests would be emulated: exits would not exist there, and no count of them could get worse."""


def keep_company(guest: Guest) -> None:
    job = guest.spawn(f"{IN_L1} python3 -c {shlex.quote(COMPANY)}")
    guest.wait_until(f"grep -q . {job.base}.out", BOOT_S, "an idle virtual machine in L1")
    if "there" not in (said := job.output()):
        say(f"nothing keeps L1 going: {said.strip()[-300:]}")


def require_kvm(guest: Guest, accel: Accel) -> None:
    program = "from vpt.bench.micro import choose_accel as c; a = c(); print(a.why); exit(a.name != 'kvm')"
    asked = guest.run(f"{IN_L1} python3 -c {shlex.quote(program)}", check=False, timeout_s=BOOT_S)
    if asked.status:
        raise NoKvmError(
            f"no exit can be counted: L1 has no KVM that runs the micro guest: {asked.output.strip()}",
            hint=NESTED if accel.name == "kvm" else f"L1's console ends with:\n{guest.console(15)}",
        )
    say(f"L1 is up; its KVM: {asked.output.strip()}")


def bench(guest: Guest, options: Iterable[str], step_s: float) -> None:
    """Run the benchmark, and say what it says as it says it; if that is nothing for so long, give up."""
    what = "bench run switch-copy exits --accel kvm -v --output /tmp/result.json"
    command = f"{IN_L1} python3 -m vpt.cli {what} {shlex.join(options)}"
    job, shown, end = guest.spawn(command), 0, time.monotonic() + step_s
    running = True
    while running:
        # Seldom: each look is some processes more in a machine that may be an emulated one.
        time.sleep(10)
        running = guest.run(f"test -e {job.base}.rc", check=False).status != 0
        said = job.output()
        print(said[shown:], end="", flush=True)
        if len(said) > shown:
            shown, end = len(said), time.monotonic() + step_s
        elif time.monotonic() > end:
            raise TimeoutExpired(
                f"L1: the benchmark has said nothing for {step_s:.0f} s; it last said: {said.strip()[-300:]}",
                hint=f"L1's console ends with:\n{guest.console(15)}",
            )
    if status := job.wait(10, check=False).status:
        raise VptError(f"the benchmark in L1 ended with {status}", hint="what it said is above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto", help="what L1 runs on")
    parser.add_argument("--output", type=Path, required=True, help="where the result file goes")
    given = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    root, payload = root_disk(), payload_disk()
    image = build_image(say, modules=MODULES)
    accel = accelerator(given.accel, image)
    try:
        measure_in_one_that_stands(accel, image, root, payload, given.output)
    except NoKvmError as error:
        if given.accel != "auto" or accel.name == "tcg":
            raise
        say(error.message)
        accel = Accel("tcg", "this machine's KVM gives L1 none")
        measure_in_one_that_stands(accel, image, root, payload, given.output)
    if accel.name == "tcg":
        say(EMULATED)


def measure_in_one_that_stands(accel: Accel, image: Image, root: Path, payload: Path, output: Path) -> None:
    """measure(), anew if an emulated L1 hangs or panics; not if the benchmark fails in one that stands."""
    for left in reversed(range(TRIES if accel.name == "tcg" else 1)):
        try:
            measure(accel, image, root, payload, output)
        except (GuestError, TimeoutExpired) as error:
            if not left:
                raise
            say(f"L1 has fallen, once more: {error.message}\n{error.hint}")
        else:
            return


def measure(accel: Accel, image: Image, root: Path, payload: Path, output: Path) -> None:
    """A run in L1, and its result file. What was measured is kept, too, if something could not be."""
    options = THOROUGH if accel.name == "kvm" else [*FUNCTIONAL, *(f"--at={at}" for at in FEW)]
    say(f"L1 runs under {accel.name}: {accel.why}")
    if accel.name == "tcg":
        say(EMULATED)
    with Guest(
        image,
        find_qemu(),
        name="l1",
        accel=accel.name,
        memory_mib=MEMORY_MIB,
        cpus=2,
        extra=[*disk("root", root), *disk("payload", payload)],
        answer_s=ANSWER_S,
    ) as guest:
        guest.wait_ready(BOOT_S)
        binds = " && ".join(f"mount --bind /{name} /l1/{name}" for name in ("proc", "sys", "dev"))
        root_tree = f"mkdir /l1 && mount -t ext4 /dev/vda /l1 && {binds} && mount -t tmpfs none /l1/tmp"
        guest.run(root_tree)
        guest.run("tar x -C /l1/payload -f /dev/vdb", timeout_s=BOOT_S)
        if accel.name == "tcg":
            keep_company(guest)
        require_kvm(guest, accel)
        try:
            bench(guest, options, STEP_S[accel.name])
        except VptError:
            with suppress(VptError):
                keep(guest, output)
            raise
        keep(guest, output)


def keep(guest: Guest, output: Path) -> None:
    packed = guest.run(PACK, check=False)
    if packed.status == 0:
        output.write_bytes(gzip.decompress(base64.b64decode(packed.output)))


if __name__ == "__main__":
    try:
        with stoppable():
            main()
    except KeyboardInterrupt:
        sys.exit(130)
    except VptError as error:
        say(f"{error.message}\nhint: {error.hint}" if error.hint else error.message)
        sys.exit(error.exit_code)
