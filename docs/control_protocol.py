# SPDX-License-Identifier: BSD-2-Clause
"""Prints docs/control-protocol.md: the control socket's methods, from the table that vptd itself goes by.

python docs/control_protocol.py > docs/control-protocol.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from vpt.daemon.daemon import Daemon, Settings
from vpt.daemon.rpc import MAX_REQUEST, Method
from vpt.daemon.runtime import locate

_HEAD = f"""\
# The control protocol

<!-- Printed by docs/control_protocol.py: change the models in vpt/daemon/models.py, then run it again. -->

vptd listens on the unix socket `vptd.sock` in its runtime dir (mode 0660). Root, the user that vptd runs as
and members of the socket's group may use it. It speaks JSON-RPC 2.0, one object per line in UTF-8, of at most
{MAX_REQUEST >> 10} KiB; parameters have names. Batches are refused. Requests of one connection are
answered in order.

```
{{"jsonrpc": "2.0", "id": 1, "method": "switch.add", "params": {{"name": "sw0"}}}}
{{"jsonrpc": "2.0", "id": 1, "result": {{"changed": true}}}}
```

An error has `code`, `message`, and in `data` a stable `code` for programs and a `hint` for people:

| code | meaning | data.code |
|---|---|---|
| -32700 | not JSON | `usage` |
| -32600 | not a request | `usage` |
| -32601 | no such method | `usage` |
| -32602 | wrong parameters | `usage` |
| -32603 | a fault of vptd's own | `internal` |
| -32000 | everything else | as in `vpt/errors.py`: `not-found`, `exists`, `conflict`, ... |

A running vptd prints the same with JSON schemas: `vpt daemon methods NAME`.
"""


def _type(schema: dict[str, Any]) -> str:
    """A short word for a JSON schema."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return "any" if name == "JsonValue" else f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(choice) for choice in choices)
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_type(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return str(schema.get("type", "any"))


def _limits(schema: dict[str, Any]) -> str:
    """What else a value has to be."""
    words = [schema["description"]] if "description" in schema else []
    for part in (schema, *schema.get("anyOf", ())):
        if "minimum" in part or "maximum" in part:
            words.append(f"{part.get('minimum', '')} to {part.get('maximum', '')}")
        if "multipleOf" in part:
            words.append(f"a multiple of {part['multipleOf']}")
        if "pattern" in part:
            words.append("`" + part["pattern"].replace("|", "\\|") + "`")
        if part is not schema and "description" in part:
            words.append(part["description"])
    return "; ".join(words)


def _table(schema: dict[str, Any]) -> Iterator[str]:
    yield from ("| name | type | default | |", "|---|---|---|---|")
    required = schema.get("required", ())
    for name, of in schema["properties"].items():
        default = "required" if name in required else f"`{json.dumps(of.get('default'))}`"
        yield f"| `{name}` | {_type(of)} | {default} | {_limits(of)} |"


def _members(schema: dict[str, Any]) -> Iterator[str]:
    yield from ("| name | type | |", "|---|---|---|")
    yield from (f"| `{name}` | {_type(of)} | {_limits(of)} |" for name, of in schema["properties"].items())


def _method(method: Method, shared: dict[str, dict[str, Any]]) -> Iterator[str]:
    params = method.params.model_json_schema()
    result = method.result.model_json_schema(mode="serialization")
    shared |= params.pop("$defs", {}) | result.pop("$defs", {}) | {method.result.__name__: result}
    yield from (f"### {method.name}", "", method.doc, "")
    if params.get("properties"):
        yield from (*_table(params), "")
    else:
        yield from ("No parameters.", "")
    name = method.result.__name__
    yield from (f"Result: [{name}](#{name.lower()})", "")


def page() -> str:
    """The whole page."""
    # Never started: it is there for its table.
    from vpt.daemon.methods import method_table

    shared: dict[str, dict[str, Any]] = {}
    lines = [_HEAD, "## Methods", ""]
    for method in method_table(Daemon(Settings(paths=locate("/run/vpt")))).values():
        lines += _method(method, shared)
    lines += ["## Objects", ""]
    shared.pop("JsonValue", None)
    for name, schema in sorted(shared.items()):
        text = schema.get("description", "").strip()
        lines += [f"### {name}", "", *([text, ""] if text else []), *_members(schema), ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
