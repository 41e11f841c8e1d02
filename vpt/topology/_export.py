# SPDX-License-Identifier: BSD-2-Clause
"""What runs, as a topology; and the JSON Schema of topologies."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel

from vpt.daemon.models import PortConfig, SwitchConfig
from vpt.provision.config import VmConfig
from vpt.topology._load import MAX_COUNT, SCHEMA
from vpt.topology._plan import Wanted

__all__ = ["as_data", "as_yaml", "json_schema"]


def as_data(state: Wanted) -> dict[str, Any]:
    """The topology that applies to nothing to do. What has its default is left out."""
    data = {
        "schema": SCHEMA,
        "switches": [_entry(switch) for switch in state.switches],
        "ports": [_entry(port) for port in state.ports],
    }
    return data | ({"vms": [_entry(vm) for vm in state.vms]} if state.vms else {})


def _entry(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude_defaults=True)


def as_yaml(state: Wanted) -> str:
    """The same as YAML, in the order of creation."""
    text: str = yaml.safe_dump(as_data(state), sort_keys=False, default_flow_style=False, width=100)
    return text


def json_schema() -> dict[str, Any]:
    """For editors. Made from vptd's models, so it has the keys that vptd has."""
    definitions: dict[str, Any] = {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vpt topology",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "schema": {"const": SCHEMA},
            "switches": _list_of(SwitchConfig, definitions),
            "ports": _list_of(PortConfig, definitions),
            "vms": _list_of(VmConfig, definitions),
        },
        "$defs": definitions,
    }


def _list_of(model: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = model.model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    schema["properties"]["count"] = {
        "type": "integer",
        "minimum": 1,
        "maximum": MAX_COUNT,
        "description": "make so many, with their numbers in place of {n}, {n:x}, {n:02x}, {n:03d}",
    }
    schema["properties"]["first"] = {
        "type": "integer",
        "minimum": 0,
        "default": 1,
        "description": "number of the first of them",
    }
    if model is VmConfig:
        # One that exists may have the name of its domain; a port may be its name alone.
        schema["required"].remove("name")
        if not schema["required"]:
            del schema["required"]
        ports = schema["properties"]["ports"]
        ports["items"] = {"anyOf": [{"type": "string"}, ports["items"]]}
        port = definitions["VmPort"]["properties"]
        port["port"].pop("pattern")
        port["address"] = {"anyOf": [{"type": "string"}, port["address"]]}
    for key in ("name", "switch"):
        if key in schema["properties"]:
            # A name before expansion. The names themselves are checked when the file is read.
            schema["properties"][key].pop("pattern")
    return {"type": ["array", "null"], "items": schema}
