# SPDX-License-Identifier: BSD-2-Clause
"""vpt stats: the counters, for people and for Prometheus."""

from __future__ import annotations

import signal

import click

from vpt.cli._common import emit_json, json_option, paths, print_table

__all__ = ["stats"]


@click.group(invoke_without_command=True)
@click.option("--prometheus", is_flag=True, help="Print Prometheus' text format.")
@json_option
@click.pass_context
def stats(ctx: click.Context, prometheus: bool, as_json: bool) -> None:
    """Print all counters of ports and workers, or serve them to Prometheus.

    Counters are read from shared memory: looking costs vptd nothing. Without --prometheus and --json, those
    that are zero are left out.

    \b
    Examples:
      vpt stats
      vpt stats --prometheus > /var/lib/prometheus/node-exporter/vpt.prom
      vpt stats serve --listen 127.0.0.1:9810
    """
    if ctx.invoked_subcommand is not None:
        return
    from vpt.daemon.runtime import not_running
    from vpt.dataplane.stats import StatsReader
    from vpt.exporter import render

    source = paths().stats
    try:
        with StatsReader(source) as reader:
            snapshot = reader.read()
    except FileNotFoundError:
        raise not_running(source.parent, f"no {source}") from None
    if prometheus:
        click.echo(render(snapshot), nl=False)
        return
    names = {queue.port_id: queue.port for queue in snapshot.queues}
    ports = {names[i]: dict(counters) for i, counters in snapshot.by_port().items()}
    workers = {str(worker.index): worker.counters for worker in snapshot.workers}
    if as_json:
        emit_json("stats", {"ports": ports, "workers": workers})
        return
    owners = [
        *((f"port {name}", counters) for name, counters in ports.items()),
        *((f"worker {index}", counters) for index, counters in workers.items()),
    ]
    rows = [(who, name, str(value)) for who, of in owners for name, value in of.items() if value]
    print_table(["OF", "COUNTER", ">VALUE"], rows)


@stats.command()
@click.option(
    "--listen", metavar="ADDRESS:PORT", default="127.0.0.1:9810", show_default=True, help="Where to listen."
)
def serve(listen: str) -> None:
    """Answer Prometheus over HTTP, at /metrics, until Ctrl-C.

    Goes on while vptd is away, and says so by vpt_up. There is no password: an address other than the
    loopback's shows the names of switches and ports to everybody who can connect.

    \b
    Example:
      vpt stats serve --listen 127.0.0.1:9810
    """
    from vpt.exporter import Exporter, parse_listen

    with Exporter(parse_listen(listen), paths().stats) as exporter:
        host, port = exporter.server_address[:2]
        click.echo(f"listening on http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}/metrics")
        # A service manager's way to say Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            exporter.serve_forever()
        except KeyboardInterrupt:
            return
