# SPDX-License-Identifier: BSD-2-Clause
"""JSON-RPC: every request line gets the answer that the protocol demands, whatever it is made of."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from vpt.daemon.rpc import Method, dispatch
from vpt.errors import NotFoundError

LOG = logging.getLogger("test")


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    number: int = 0


class Result(BaseModel):
    doubled: int


async def _double(params: Params) -> Result:
    return Result(doubled=2 * params.number)


async def _refuse(_params: Params) -> Result:
    raise NotFoundError("no such thing", hint="look elsewhere")


async def _fail(_params: Params) -> Result:
    raise ZeroDivisionError("a secret")


METHODS = {
    name: Method(name, Params, Result, "", handler)
    for name, handler in {"double": _double, "refuse": _refuse, "fail": _fail}.items()
}


def ask(line: bytes) -> dict[str, Any] | None:
    raw = asyncio.run(dispatch(METHODS, line, LOG, "vpt daemon methods"))
    if raw is None:
        return None
    assert raw.endswith(b"\n")
    assert raw.count(b"\n") == 1, "one object per line"
    answer: dict[str, Any] = json.loads(raw)
    assert answer["jsonrpc"] == "2.0"
    assert ("result" in answer) != ("error" in answer)
    return answer


def request(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": "double", **members}).encode()


def test_a_request_gets_its_result_under_its_id() -> None:
    assert ask(request(params={"number": 21})) == {"jsonrpc": "2.0", "id": 7, "result": {"doubled": 42}}


@pytest.mark.parametrize("request_id", [0, 1.5, "seven", None])
def test_an_id_may_be_a_number_a_string_or_null(request_id: Any) -> None:
    answer = ask(request(id=request_id))
    assert answer is not None
    assert answer["id"] == request_id


def test_a_notification_is_carried_out_and_not_answered() -> None:
    assert ask(b'{"jsonrpc":"2.0","method":"double"}') is None
    assert ask(b'{"jsonrpc":"2.0","method":"refuse"}') is None


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 60000, -32700),
        (b'{"a":' * 9000, -32700),
        (b"9" * 5000, -32700),
        (b"null", -32600),
        (b'"x"', -32600),
        (b"[]", -32600),
        (b'[{"jsonrpc":"2.0","id":1,"method":"double"}]', -32600),
        (b"{}", -32600),
        (request(jsonrpc="1.0"), -32600),
        (request(id=[]), -32600),
        (request(id=True), -32600),
        (request(id={}), -32600),
        (request(method=5), -32600),
        (request(method=None), -32600),
        (request(extra=1), -32600),
        (request(**{"\ud800": 1}), -32600),
        (request(method="nothing"), -32601),
        (request(method="\ud800"), -32601),
        (request(method="x" * 1000), -32601),
        (request(params=[1]), -32602),
        (request(params=None), -32602),
        (request(params={"number": "5"}), -32602),
        (request(params={"number": 1.5}), -32602),
        (request(params={"other": 1}), -32602),
        (request(params={"\ud800": 1}), -32602),
    ],
)
def test_what_is_not_a_good_request_gets_the_protocols_error(line: bytes, number: int) -> None:
    answer = ask(line)
    assert answer is not None
    assert answer["error"]["code"] == number
    assert answer["error"]["message"]
    assert answer["error"]["data"]["hint"]
    assert len(answer["error"]["message"]) < 500, "an error does not echo what it was sent"


def test_an_error_of_vpt_carries_code_and_hint() -> None:
    answer = ask(request(method="refuse"))
    assert answer is not None
    assert answer["error"] == {
        "code": -32000,
        "message": "no such thing",
        "data": {"code": "not-found", "hint": "look elsewhere"},
    }


def test_a_fault_of_the_daemon_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(request(method="fail"))
    assert answer is not None
    assert answer["error"]["code"] == -32603
    assert answer["error"]["data"]["code"] == "internal"
    assert "secret" not in json.dumps(answer)
    assert "ZeroDivisionError" in caplog.text


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer(line: bytes) -> None:
    answer = ask(line)
    assert answer is None or "error" in answer


_TEXT = st.text(st.sampled_from("aé\n\0\ud800"), max_size=3)
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {}, optional={"jsonrpc": st.just("2.0"), "id": _JSON, "method": _JSON, "params": _JSON}
    )
)
def test_any_object_gets_an_answer(members: dict[str, Any]) -> None:
    answer = ask(json.dumps(members).encode())
    assert answer is None or "error" in answer or "result" in answer
