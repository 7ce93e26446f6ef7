"""Settings of the agent."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from splitmesh.client.fleet_bounds import MAX_HELD
from splitmesh.kernel.config import ServiceSettings, data_dir_default

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
MAX_LABEL = 200
MAX_NAMES = 64


class AgentSettings(ServiceSettings):
    """Settings of the agent, beside those every service has. `node` is the host's name, unique in the fleet."""

    data_dir: Path = Field(default_factory=lambda: data_dir_default("agent"))
    """Where tasks, assignments and the host's policy are kept; one agent a folder."""
    tenant: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    """Enterprise; empty: the fleet's default one."""
    site: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Factory that this host stands in."""
    line: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    """Production line; may be empty."""
    camera_groups: str = ""
    """Groups of cameras that this host answers, separated by commas."""
    labels: str = ""
    """Further names and values that deployments can choose hosts by: `shift=day,hall=3`."""

    fleet_service: str = Field(default="fleet", min_length=1)
    """Name under which the fleet is discovered."""
    head_service: str = Field(default="head", min_length=1)
    """Name under which this host's heads are discovered. With addresses in `static_addresses` each process of a head is listed
    by its own port: behind a shared one only one of them would be told."""
    heads: str = ""
    """Node names of this host's heads, separated by commas; a name stands for all processes of that head. Empty: all that are
    discovered, so with a catalogue of many hosts it must be set."""
    head_data_dir: Path | None = None
    """`data_dir` of this host's head, to tell the fleet how many records wait in its spool; unset: it is not told."""
    head_silence_s: float = Field(default=15.0, gt=0)
    """A head that does not answer for so long is told to the fleet as one that answers nothing, seconds."""

    max_tasks: int = Field(default=1, ge=1, le=64)
    """Tasks other than deployments that are worked on at once."""
    max_held_tasks: int = Field(default=1000, ge=1, le=MAX_HELD)
    """Tasks that are begun, or whose end was not acknowledged; more are refused with QUEUE_FULL."""
    reconnect_longest_s: float = Field(default=5.0, gt=0)
    """Longest wait before a broken stream is opened again, seconds; the first one is 0.1 s."""
    replaced_wait_s: float = Field(default=30.0, gt=0)
    """Wait after another agent with this name took the node, or after the fleet refused this one, seconds."""
    host_check_s: float = Field(default=600.0, gt=0)
    """Time between two looks at what the host can do, seconds; the fleet is told when that has changed."""

    datasets_dir: Path = Field(default_factory=lambda: data_dir_default("datasets"))
    """Folder of this site's pictures, which collected samples are kept in."""
    sharing: Path | None = None
    """File of what this site lets go of its datasets; unset: nothing leaves it, so that nothing can be collected."""

    @field_validator("sharing", "head_data_dir", mode="before")
    @classmethod
    def _nothing_set(cls, value: object) -> object:
        """As a compose file says that nothing is set."""
        return None if value == "" else value

    @field_validator("camera_groups", "heads")
    @classmethod
    def _some_names(cls, text: str) -> str:
        names = _split(text)
        if unlike := [name for name in names if not _NAME.fullmatch(name)]:
            raise ValueError(f"{unlike[0]!r} is not 1 to 64 letters, digits, dots, dashes and underscores")
        if len(names) > MAX_NAMES:
            raise ValueError(f"names {len(names)}, at most {MAX_NAMES} can be")
        return text

    @field_validator("labels")
    @classmethod
    def _some_labels(cls, text: str) -> str:
        _labels(text)
        return text

    def group_names(self) -> list[str]:
        """`camera_groups` as a list."""
        return _split(self.camera_groups)

    def head_names(self) -> list[str]:
        """`heads` as a list."""
        return _split(self.heads)

    def label_values(self) -> dict[str, str]:
        """`labels` by name."""
        return _labels(self.labels)


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _labels(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in _split(text):
        name, equals, value = (part.strip() for part in entry.partition("="))
        if not equals or not _LABEL_NAME.fullmatch(name) or not value.isprintable() or len(value) > MAX_LABEL:
            raise ValueError(f"{entry[:80]!r} is not a name and its value, as in hall=3")
        if name in found:
            raise ValueError(f"{name!r} has two values")
        found[name] = value
    if len(found) > MAX_NAMES:
        raise ValueError(f"names {len(found)}, at most {MAX_NAMES} can be")
    return found
