# SPDX-License-Identifier: BSD-2-Clause
"""Prometheus takes what vpt prints and serves, and every counter is in it."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.vptd import Vptd, run_vpt, vpt_json
from vpt.dataplane.stats import COUNTERS, WORKER_COUNTERS
from vpt.errors import UsageError
from vpt.exporter import CONTENT_TYPE, Exporter, parse_listen, render

pytestmark = pytest.mark.needs("py:prometheus_client")


@pytest.fixture(scope="module")
def lab() -> Iterator[Vptd]:
    daemon = Vptd()
    daemon.start()
    daemon.call("switch.add", name="sw0")
    daemon.call("port.add", switch="sw0", name="vm1", kind="vhost-user", pairs=2)
    daemon.call("port.add", switch="sw0", name="sink", kind="null")
    yield daemon
    daemon.close()


def _families(text: str) -> dict[str, Any]:
    from prometheus_client.parser import text_string_to_metric_families

    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a family is in one piece"
    return {family.name: family for family in families}


def test_every_counter_is_there_once_per_port_and_worker(lab: Vptd) -> None:
    printed = run_vpt(lab.paths.runtime, "stats", "--prometheus")
    assert printed.returncode == 0, printed.stderr
    families = _families(printed.stdout)
    assert families["vpt_up"].samples[0].value == 1
    # Counters lose their _total in the parser's family names.
    of_ports = [f for name, f in families.items() if name.startswith("vpt_port_")]
    of_workers = [f for name, f in families.items() if name.startswith("vpt_worker_")]
    assert sum(len(f.samples) for f in of_ports) == len(COUNTERS) * 2
    assert sum(len(f.samples) for f in of_workers) == len(WORKER_COUNTERS)
    assert all(f.type == "counter" and f.documentation for f in of_ports + of_workers)
    assert not [f.name for f in of_ports + of_workers if f.documentation.startswith("Counter ")], (
        "each says what it counts"
    )
    labels = families["vpt_port_tx_packets"].samples[0].labels
    assert labels.keys() == {"port", "switch", "kind"}
    drops = {(s.labels["direction"], s.labels["cause"]) for s in families["vpt_port_drops"].samples}
    assert {("tx", "spoofed"), ("rx", "full")} <= drops


def test_what_is_exported_is_what_vptd_says(lab: Vptd) -> None:
    families = _families(run_vpt(lab.paths.runtime, "stats", "--prometheus").stdout)
    loops = families["vpt_worker_loops"].samples[0].value
    assert 0 < loops <= lab.call("stats")["workers"][0]["loops"]
    assert vpt_json(lab.paths.runtime, "stats")["ports"].keys() == {"vm1", "sink"}
    assert "worker 0" in run_vpt(lab.paths.runtime, "stats").stdout


def _get(port: int, path: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def test_http_serves_the_metrics_and_survives_the_end_of_vptd(lab: Vptd, tmp_path: Path) -> None:
    with Exporter(("127.0.0.1", 0), lab.paths.stats) as exporter:
        thread = threading.Thread(target=exporter.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            port = exporter.server_address[1]
            status, kind, text = _get(port, "/metrics")
            assert (status, kind) == (200, CONTENT_TYPE)
            assert _families(text)["vpt_up"].samples[0].value == 1
            assert _get(port, "/")[0] == 404
            exporter.source = tmp_path / "none"
            assert _families(_get(port, "/metrics")[2])["vpt_up"].samples[0].value == 0
            garbage = tmp_path / "garbage"
            garbage.write_bytes(b"x" * 100)
            exporter.source = garbage
            assert _get(port, "/metrics")[0] == 500, "and no half of a page"
        finally:
            exporter.shutdown()
            thread.join()


def test_vpt_stats_serve_says_where_and_ends_by_sigterm(lab: Vptd) -> None:
    argv = [sys.executable, "-m", "vpt.cli", "--runtime-dir", str(lab.paths.runtime)]
    argv += ["stats", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            port = int(line.rpartition(":")[2].partition("/")[0])
            assert "vpt_worker_loops_total" in _get(port, "/metrics")[2]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("text", ["", "9810", "localhost:9810", "127.0.0.1:", "127.0.0.1:70000", "::1:x"])
def test_an_address_that_is_none_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="no address and port"):
        parse_listen(text)


def test_addresses() -> None:
    assert parse_listen("127.0.0.1:9810") == ("127.0.0.1", 9810)
    assert parse_listen("[::1]:0") == ("::1", 0)


def test_without_vptd_there_is_an_exposition_that_says_so() -> None:
    assert _families(render(None)).keys() == {"vpt_up", "vpt_build_info"}
