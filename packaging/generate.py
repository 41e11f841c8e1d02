# SPDX-License-Identifier: BSD-2-Clause
"""Manual pages and shell completion, from the command line's own definitions. Run by the build.

generate.py VERSION vpt.1|vptd.8|vpt.bash|_vpt|vpt.fish > FILE
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import get_completion_class

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

_COMPLETION = {"vpt.bash": "bash", "_vpt": "zsh", "vpt.fish": "fish"}


def _roff(text: str) -> str:
    """Text as it stands: no character of it is a request or an escape."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    return "\n".join(f"\\&{line}" if line.startswith(".") else line for line in escaped.splitlines())


def _paragraphs(text: str) -> Iterator[str]:
    """click's help: paragraphs, of which those that begin with \\b keep their lines."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield from (".PP", ".nf", _roff(paragraph.removeprefix("\b\n")), ".fi")
        else:
            yield from (".PP", _roff(paragraph))


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield from (".TP", f"\\fB{_roff(record[0])}\\fR", _roff(record[1]))


def _commands(
    command: click.Command, context: click.Context
) -> Iterator[tuple[click.Command, click.Context]]:
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            inner_context = click.Context(inner, info_name=name, parent=context)
            yield from _commands(inner, inner_context)


def _header(name: str, section: int, version: str, summary: str) -> Iterator[str]:
    yield from (
        f'.TH {name.upper()} {section} "" "vpt {version}"',
        ".SH NAME",
        f"{name} \\- {_roff(summary)}",
    )


def _vpt_page(version: str) -> Iterator[str]:
    from vpt.cli._main import vpt

    top = click.Context(vpt, info_name="vpt")
    first, _, rest = (vpt.help or "").partition("\n")
    yield from _header("vpt", 1, version, first.rstrip("."))
    yield from (".SH SYNOPSIS", f"\\fBvpt\\fR {_roff(' '.join(vpt.collect_usage_pieces(top)))}")
    yield from (".SH DESCRIPTION", *_paragraphs(rest), ".SH OPTIONS", *_options(vpt, top), ".SH COMMANDS")
    for command, context in _commands(vpt, top):
        if command is vpt:
            continue
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        yield from (f".SS {_roff(usage)}", *_paragraphs(command.help or ""), *_options(command, context))
    yield from (".SH NOTES", *_paragraphs(vpt.epilog or ""), ".SH SEE ALSO", "\\fBvptd\\fR(8)")


def _invocation(action: argparse.Action) -> str:
    """An option as it is typed."""
    value = "" if action.nargs == 0 else action.metavar or "|".join(action.choices or ())
    return f"{', '.join(action.option_strings)} {value}".strip()


def _vptd_page(version: str) -> Iterator[str]:
    from vpt.daemon.main import argument_parser

    parser = argument_parser()
    yield from _header("vptd", 8, version, (parser.description or "").rstrip("."))
    yield from (".SH SYNOPSIS", "\\fBvptd\\fR [\\fIOPTIONS\\fR]", ".SH DESCRIPTION")
    yield from (*_paragraphs(parser.epilog or ""), ".SH OPTIONS")
    for action in parser._actions:  # argparse has no public list of them
        yield from (".TP", f"\\fB{_roff(_invocation(action))}\\fR", _roff(action.help or ""))
    yield from (".SH SEE ALSO", "\\fBvpt\\fR(1)")


def _completion(shell: str) -> str:
    from vpt.cli._main import vpt

    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(vpt, {}, "vpt", "_VPT_COMPLETE")
    return kind.source_template % complete.source_vars()


def generate(version: str, name: str) -> str:
    """The file of that name."""
    if name in _COMPLETION:
        return _completion(_COMPLETION[name])
    pages = {"vpt.1": _vpt_page, "vptd.8": _vptd_page}
    return "\n".join(pages[name](version)) + "\n"


if __name__ == "__main__":
    sys.stdout.write(generate(*sys.argv[1:]))
