# SPDX-License-Identifier: BSD-2-Clause
"""The `vpt` command: options of all commands, lazy loading, errors to messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from vpt import __version__
from vpt.cli._table import COMMANDS
from vpt.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, VptError

__all__ = ["main", "vpt"]

_EPILOG = """\b
Two virtual machines on one switch, from nothing:
  vpt daemon start
  vpt switch add sw0
  vpt port add sw0 vm1 --kind vhost-user      (stock virtio-net in the guest)
  vpt port add sw0 vm2 --kind passthrough     (vpt_net in the guest)
  vpt show vm1                                (how to tell QEMU)

\b
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a needed thing is missing on this host,
4 (vpt diff) there is something to do.
With --json, results are an object with a "schema", and errors one of "vpt.error/v1".
"""


_ROWS = {row.name: row for row in COMMANDS}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are run, or asked for their help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        return list(_ROWS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        row = _ROWS.get(cmd_name)
        if row is None:
            return None
        module, _, attribute = row.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for section in dict.fromkeys(row.section for row in COMMANDS):
            with formatter.section(section):
                formatter.write_dl([(row.name, row.help) for row in COMMANDS if row.section == section])


@click.group(
    cls=_LazyGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="vpt")
@click.option(
    "--runtime-dir",
    metavar="DIR",
    envvar="VPT_RUNTIME_DIR",
    help="Which vptd: the folder of its socket. Default: /run/vpt, or $XDG_RUNTIME_DIR/vpt for users.",
)
@click.pass_context
def vpt(ctx: click.Context, runtime_dir: str | None) -> None:
    """Fast packet I/O for virtual machines, without a kernel module on the host.

    vptd, a daemon, owns rings in shared memory and a software switch. A virtual machine is plugged in by
    vhost-user, with the virtio-net driver that it has, or by passthrough, where a small driver in the guest
    (vpt_net) works on the host's own rings.
    """
    ctx.obj = runtime_dir


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `vpt`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = vpt.main(args=arguments, prog_name="vpt", standalone_mode=False)
        return code if isinstance(code, int) else EXIT_OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message(), err=True)
        return EXIT_USAGE
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except VptError as error:
        _report(error, as_json="--json" in arguments)
        return error.exit_code
    except BrokenPipeError:
        # `vpt ls | head`: the reader has what it wants. Python must not try to flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        from vpt.cli._system_errors import in_words

        told = in_words(error)
        if told is None:
            raise
        _report(told, as_json="--json" in arguments)
        return EXIT_FAILED
    except (click.Abort, KeyboardInterrupt):
        return 130


def _report(error: VptError, *, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps({"schema": "vpt.error/v1", **error.to_wire()}, indent=2))
        return
    click.echo(f"{click.style('error:', fg='red', bold=True)} {error.message}", err=True)
    if error.hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {error.hint}", err=True)
