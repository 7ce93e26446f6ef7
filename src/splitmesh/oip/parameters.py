"""Named parameters of requests and answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.errors import field_error

Value = bool | int | float | str

MAX_DEADLINE_MS = 600_000
MAX_TEXT = 256
"""Characters of a text that a parameter holds."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a request says beside its inputs."""

    deadline_ms: int = 0
    """0: the node's default."""
    camera_id: str = ""
    traceparent: str = ""
    priority: int = 0
    timings: bool = False
    """Say where the time went."""
    final_marked: bool = False
    """An answer says that it is the last one to its request, which each is."""


NO_OPTIONS = Options()


def options_from(parameters: Mapping[str, pb.InferParameter]) -> Options:
    """The parameters that are known; others are ignored, as clients send what other servers take.

    ``deadline_ms`` goes before ``timeout``, which is in microseconds as at Triton and rounded up. FIELD_INVALID for a known
    one of the wrong kind or out of range.
    """
    if not parameters:
        return NO_OPTIONS
    deadline_ms = _number(parameters, "deadline_ms")
    if not deadline_ms:
        deadline_ms = -(-_number(parameters, "timeout") // 1000)
    return Options(
        deadline_ms=min(deadline_ms, MAX_DEADLINE_MS),
        camera_id=_text(parameters, "camera_id"),
        traceparent=_text(parameters, "traceparent"),
        priority=_number(parameters, "priority"),
        timings=_flag(parameters, "timings"),
        final_marked=_flag(parameters, "triton_enable_empty_final_response"),
    )


def number_from(parameters: Mapping[str, pb.InferParameter], name: str) -> int:
    """A whole number from 0 on; 0 where it is absent."""
    return _number(parameters, name)


def set_parameter(parameter: pb.InferParameter, value: Value) -> None:
    """As the kind that the value is."""
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def _number(parameters: Mapping[str, pb.InferParameter], name: str) -> int:
    value = _value(parameters, name)
    if value is None:
        return 0
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)  # some clients only send texts
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise field_error(f"parameters.{name}", f"is {value!r}, not a whole number from 0 on")
    return value


def _text(parameters: Mapping[str, pb.InferParameter], name: str) -> str:
    value = _value(parameters, name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise field_error(f"parameters.{name}", f"is not a text of at most {MAX_TEXT} characters")
    return value


def _flag(parameters: Mapping[str, pb.InferParameter], name: str) -> bool:
    value = _value(parameters, name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise field_error(f"parameters.{name}", f"is {value!r}, not true or false")
    return value


def _value(parameters: Mapping[str, pb.InferParameter], name: str) -> Value | None:
    if name not in parameters:
        return None
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    value: Value | None = None if kind is None else getattr(parameter, kind)
    return value
