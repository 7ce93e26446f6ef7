"""The tables of host policies. Times are microseconds since 1970, UTC."""

from __future__ import annotations

from sqlalchemy import Table, UniqueConstraint

from services.fleet.schema import METADATA
from splitmesh.sql.columns import BYTES, KEYED, NUMBER, NUMBERED, TEXT, key, needed

policy_rules = Table(
    "policy_rules",
    METADATA,
    key("number", NUMBER),
    needed("id", TEXT),
    needed("target", BYTES),
    needed("policy", BYTES),
    needed("create_time_us", NUMBER),
    UniqueConstraint("target"),
    **NUMBERED,
)
"""The newest one that means a host is the host's. ``target``, ``policy``: messages (fleet.proto, serving.proto); ``id``: of no
other rule, nor of one that was taken back with its transaction."""

host_policies = Table(
    "host_policies",
    METADATA,
    key("node", TEXT),
    needed("generation", NUMBER),
    needed("policy", BYTES),
    **KEYED,
)
"""What a host is to have, as last found out. Stays when the host is forgotten: it comes back with what it held."""
