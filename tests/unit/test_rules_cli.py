# SPDX-License-Identifier: BSD-2-Clause
"""VLANs, isolation, rates and storm limits on the command line: vpt port add|set, vpt switch add|set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from support.vptd import Vptd, run_vpt, vpt_json
from vpt.cli._rules import rule_options, rule_params, rules_text
from vpt.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE


def parsed(*arguments: str) -> dict[str, Any]:
    """What these options ask for."""
    found: dict[str, Any] = {}

    @click.command()
    @rule_options
    def command(**options: Any) -> None:
        found.update(rule_params(options))
        assert options == {}, "all of them are taken out"

    done = CliRunner().invoke(command, arguments)
    if done.exit_code:
        raise click.UsageError(done.output)
    return found


@pytest.mark.parametrize(
    ("arguments", "params"),
    [
        ("", {}),
        ("--vlan 10", {"vlan": {"access": 10}}),
        ("--trunk 10,20-30 --native 1", {"vlan": {"trunk": [10, "20-30"], "native": 1}}),
        ("--isolated", {"isolated": True}),
        ("--no-isolated --anti-spoofing", {"isolated": False, "anti_spoofing": True}),
        ("--rate-tx 100M", {"rate": {"tx": {"bits_per_s": 100_000_000}}}),
        (
            "--rate-rx 1G --burst-rx 4k --packets-rx 5 --burst-packets-rx 6",
            {
                "rate": {
                    "rx": {"bits_per_s": 10**9, "burst_bytes": 4000, "packets_per_s": 5, "burst_packets": 6}
                }
            },
        ),
        ("--rate-tx none", {"rate": {"tx": None}}),
        ("--rate-tx none --packets-tx 7", {"rate": {"tx": {"packets_per_s": 7}}}),
        ("--broadcast-limit none --unknown-limit 1k", {"storm": {"broadcast": 0, "unknown": 1000}}),
    ],
)
def test_options_say_what_the_protocol_says(arguments: str, params: dict[str, Any]) -> None:
    assert parsed(*arguments.split()) == params


@pytest.mark.parametrize("value", ["fast", "-1", "1.5G", "10T", "", "9" * 16])
def test_an_amount_that_is_none_is_refused_with_an_example(value: str) -> None:
    with pytest.raises(click.UsageError, match="look like 2000, 10k, 100M, 1G"):
        parsed("--rate-tx", value)


@pytest.fixture(scope="module")
def vptd() -> Iterator[Vptd]:
    daemon = Vptd()
    daemon.start()
    yield daemon
    daemon.close()


def test_rules_are_set_shown_changed_and_taken_away(vptd: Vptd) -> None:
    folder = vptd.paths.runtime
    vpt_json(folder, "switch", "add", "sw0", "--isolation", "--mtu", "2000")
    mac = "52:54:00:00:00:01"
    add = ["port", "add", "sw0", "p", "--kind", "vhost-user", "--mac", mac, "--anti-spoofing"]
    port = vpt_json(
        folder, *add, "--trunk", "5,7-9,6", "--native", "1", "--rate-tx", "1M", "--multicast-limit", "9"
    )
    assert (port["mtu"], port["isolated"], port["anti_spoofing"]) == (2000, True, True)
    assert port["vlan"] == {"access": None, "trunk": ["5-9"], "native": 1}
    assert dict(rules_text(port)) == {
        "vlan": "trunk 5-9, native 1",
        "isolated": "yes",
        "anti-spoofing": "yes",
        "rate tx": "1000000 bits per second",
        "storm limits": "broadcast 10000, multicast 9 per second",
    }
    port = vpt_json(folder, "port", "set", "p", "--vlan", "5", "--rate-rx", "2M", "--no-isolated")
    assert port["vlan"]["access"] == 5
    assert (port["rate"]["tx"]["bits_per_s"], port["rate"]["rx"]["bits_per_s"]) == (1_000_000, 2_000_000)
    assert (port["isolated"], port["storm"]["multicast"]) == (False, 9), "what is not named stays"
    port = vpt_json(folder, "port", "set", "p", "--no-vlan", "--rate-tx", "none", "--no-anti-spoofing")
    assert (port["vlan"], port["rate"]["tx"], port["anti_spoofing"]) == (None, None, False)
    switch = vpt_json(folder, "switch", "set", "sw0", "--mac-age", "9", "--no-isolation")
    assert (switch["mac_age_s"], switch["isolation"]) == (9, False)
    assert vpt_json(folder, "port", "set", "p", "--mtu", "9000")["mtu"] == 9000
    assert vpt_json(folder, "port", "list")["ports"][0]["mtu"] == 9000


@pytest.mark.parametrize(
    ("command", "said", "code"),
    [
        ("port set q --native 3", "give either access or trunk", EXIT_USAGE),
        ("port set q --vlan 3 --trunk 4", "give either access or trunk", EXIT_USAGE),
        ("port set q --vlan 4095", "vlan.access", EXIT_USAGE),
        ("port set q --anti-spoofing", "anti_spoofing needs a mac", EXIT_USAGE),
        ("port set q --burst-tx 9", "give bits_per_s or packets_per_s", EXIT_USAGE),
        ("port set q --no-vlan --vlan 3", "exclude each other", EXIT_USAGE),
        ("port set q --mtu 67", "mtu", EXIT_USAGE),
        ("port set r --mtu 9000", "written down in its region", EXIT_FAILED),
        ("port set q", "nothing to change", EXIT_USAGE),
        ("switch set lab", "nothing to change", EXIT_USAGE),
        ("switch set none --mac-age 5", "no switch 'none'", EXIT_FAILED),
    ],
)
def test_what_can_not_be_changes_nothing(vptd: Vptd, command: str, said: str, code: int) -> None:
    vptd.call("switch.add", name="lab", may_exist=True)
    vptd.call("port.add", switch="lab", name="q", kind="null", may_exist=True)
    vptd.call("port.add", switch="lab", name="r", kind="passthrough", may_exist=True)
    before = vptd.call("config")
    done = run_vpt(vptd.paths.runtime, *command.split())
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert vptd.call("config") == before
    assert run_vpt(vptd.paths.runtime, "ls").returncode == EXIT_OK
