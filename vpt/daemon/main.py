# SPDX-License-Identifier: BSD-2-Clause
"""vptd: the daemon as a program, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import grp
import logging
import resource
import signal
import sys
from collections.abc import Sequence

from vpt import __version__
from vpt.daemon.arguments import seconds
from vpt.daemon.manager import inherited_socket, notify
from vpt.daemon.runtime import ENV_RUNTIME_DIR, ENV_STATE_DIR, locate
from vpt.errors import EXIT_FAILED, EXIT_OK, UsageError, VptError

__all__ = ["argument_parser", "main"]

_EPILOG = f"""
vptd stays in the foreground and logs to standard error; `vpt daemon start` puts it in the background.

SIGTERM and SIGINT end it cleanly. Switches and ports are remembered in the state dir and come back with the
next start. With --keep (the default) the keeper process meanwhile holds the memory of passthrough and app
ports, so that running guests do not notice more than a pause; with --no-keep it is told to let go, and
guests' passthrough devices are dead until they are plugged in again. A keeper that nobody is connected to
ends by itself.

exit codes: 0 told to stop, 1 failed, 2 wrong usage or a damaged journal (do not restart), 3 something is
missing

environment: {ENV_RUNTIME_DIR}, {ENV_STATE_DIR}; NOTIFY_SOCKET and LISTEN_FDS, of a service manager that waits
until vptd is ready, or listens on its control socket
"""


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vptd",
        description="The daemon of vpt: owns the rings and the switch that virtual machines use.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vptd {__version__}")
    parser.add_argument(
        "--runtime-dir", metavar="DIR", help="sockets and counters (default /run/vpt for root)"
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", help="what survives a reboot (default /var/lib/vpt for root)"
    )
    parser.add_argument(
        "--workers", type=_count, default=1, metavar="N", help="threads that move packets (default 1)"
    )
    parser.add_argument(
        "--cpus", type=_cpus, default=(), metavar="LIST", help="pin worker i to the i-th CPU, e.g. 2,3"
    )
    parser.add_argument("--group", type=_group, metavar="NAME", help="group that may use the sockets")
    parser.add_argument(
        "--keep",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="at a clean end, let the keeper hold guests' memory",
    )
    parser.add_argument(
        "--keeper",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="have a keeper at all; without, guests lose their passthrough devices when vptd ends",
    )
    parser.add_argument(
        "--linger",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long an unused keeper stays (default 60)",
    )
    parser.add_argument(
        "--log-level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="what goes to the log (default info)",
    )
    return parser


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= 32:
        raise argparse.ArgumentTypeError(f"1 to 32 workers, not {text!r}")
    return value


def _cpus(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(cpu) for cpu in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"CPU numbers with commas between them, not {text!r}") from None


def _group(text: str) -> int:
    try:
        return int(text) if text.isdigit() else grp.getgrnam(text).gr_gid
    except KeyError:
        raise argparse.ArgumentTypeError(
            f"no group {text!r}; make it with: groupadd --system {text}"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vptd`. Returns the exit code."""
    options = argument_parser().parse_args(argv)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    _raise_fd_limit()
    try:
        asyncio.run(_run(options))
    except VptError as error:
        print(f"vptd: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except Exception:
        logging.getLogger("vpt.daemon").exception("ended by a fault of its own")
        return EXIT_FAILED
    return EXIT_OK


def _raise_fd_limit() -> None:
    """A port of 32 queue pairs needs 131 descriptors in the data plane and as many here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(options: argparse.Namespace) -> None:
    # Late, so that --help and wrong usage do not wait for pydantic and the data plane.
    from vpt.daemon.daemon import Daemon, Settings

    if len(options.cpus) > options.workers:
        raise UsageError(f"{len(options.cpus)} CPUs for {options.workers} workers", hint="raise --workers")
    paths = locate(options.runtime_dir, options.state_dir)
    daemon = Daemon(
        Settings(
            paths=paths,
            workers=options.workers,
            cpus=options.cpus,
            keeper=options.keeper,
            keep=options.keep,
            group=options.group,
            linger_s=options.linger,
            control=inherited_socket(paths.control),
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stopping.set)
    await daemon.start()
    notify("READY=1")
    try:
        await daemon.stopping.wait()
    finally:
        notify("STOPPING=1")
        await daemon.stop()


if __name__ == "__main__":
    sys.exit(main())
