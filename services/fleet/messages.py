"""What agents and operators send, judged: bounds on everything that is kept or held in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from services.fleet.names import check_name, check_text
from services.fleet.targets import read_target
from services.fleet.tasks import lease
from services.fleet.tasks.store import Filter
from services.fleet.values import TaskDraft
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.client.fleet_bounds import MAX_HELD, MAX_STATES
from splitmesh.errors import field_error

MAX_LABELS, MAX_LABEL_CHARS = 64, 256
MAX_GROUPS = 256
MAX_TASKS = 1_000
MAX_STATE_BYTES = 64 * 1024
MAX_CAPABILITIES_BYTES = 64 * 1024
MAX_HEARTBEAT_BYTES = 1024
MAX_MESSAGE_CHARS = 4_000
MAX_RESULT_BYTES = 16 * 1024
MAX_PROGRESS_BYTES = 16 * 1024
MAX_ATTEMPTS, DEFAULT_ATTEMPTS = 100, 3
MAX_BUDGET_S = 24 * 3600.0

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_UPDATES = (lease.RUNNING, lease.DONE, lease.FAILED, lease.CANCELLED)


def check_hello(hello: pb.Hello) -> pb.Hello:
    """As it came; FIELD_INVALID."""
    check_name("hello.node", hello.node)
    if hello.tenant:
        check_name("hello.tenant", hello.tenant)
    for field, text in (("site", hello.site), ("line", hello.line), ("agent_version", hello.agent_version)):
        check_text(f"hello.{field}", text)
    check_text("hello.boot_id", hello.boot_id)
    if not hello.boot_id:
        raise field_error("hello.boot_id", "is empty")
    _check_count("hello.camera_groups", len(hello.camera_groups), MAX_GROUPS)
    for group in hello.camera_groups:
        check_text("hello.camera_groups", group)
    check_labels("hello.labels", hello.labels)
    check_capabilities("hello.capabilities", hello.capabilities)
    check_states("hello.serving", hello.serving)
    _check_count("hello.held", len(hello.held), MAX_HELD)
    for held in hello.held:
        check_text("hello.held.task_id", held.task_id)
    if hello.max_tasks > MAX_TASKS:
        raise field_error("hello.max_tasks", f"is {hello.max_tasks}, at most {MAX_TASKS}")
    return hello


def check_labels(field: str, labels: Mapping[str, str]) -> None:
    """FIELD_INVALID for too many, or one that is too long or has no name."""
    _check_count(field, len(labels), MAX_LABELS)
    for name, value in labels.items():
        check_text(f"a name in {field}", name)
        check_text(f"{field}[{name!r}]", value, MAX_LABEL_CHARS)
        if not name:
            raise field_error(field, "has a label without a name")


def check_capabilities(field: str, capabilities: pb.Capabilities) -> None:
    """FIELD_INVALID for what is too large to keep of every host."""
    _check_bytes(field, capabilities, MAX_CAPABILITIES_BYTES)


def check_states(field: str, states: Any) -> None:
    """FIELD_INVALID for too many states, or one that is too large or names no model."""
    _check_count(field, len(states), MAX_STATES)
    state: serving_pb2.ServingState
    for state in states:
        check_text(f"{field}.model", state.model)
        check_text(f"{field}.node", state.node)
        if not state.model:
            raise field_error(f"{field}.model", "is empty")
        _check_bytes(field, state, MAX_STATE_BYTES)


def check_serving(update: pb.ServingUpdate) -> None:
    """FIELD_INVALID."""
    check_states("serving.states", update.states)
    _check_count("serving.gone", len(update.gone), MAX_STATES)


def check_heartbeat(heartbeat: pb.Heartbeat) -> None:
    """FIELD_INVALID."""
    _check_bytes("heartbeat", heartbeat, MAX_HEARTBEAT_BYTES)


def check_update(update: pb.TaskUpdate) -> pb.TaskUpdate:
    """With its texts cut to what is kept: an update that was refused for its length would come again for ever. FIELD_INVALID for
    a state that no host can say."""
    check_text("task.task_id", update.task_id)
    if update.state not in _UPDATES:
        raise field_error("task.state", f"{update.state} is not RUNNING, DONE, FAILED or CANCELLED")
    update.message = _cut(update.message)
    update.reason = update.reason[:64].replace("\0", "")
    if update.progress.ByteSize() > MAX_PROGRESS_BYTES:
        update.progress.figures.clear()
        update.progress.message = _cut(update.progress.message)
        update.progress.phase = update.progress.phase[:64]
    if update.ByteSize() - update.progress.ByteSize() > MAX_RESULT_BYTES + MAX_MESSAGE_CHARS:
        update.result.clear()
        update.message = f"(a result of more than {MAX_RESULT_BYTES} bytes was not kept) {update.message}"[
            :MAX_MESSAGE_CHARS
        ]
    return update


def draft_from(request: pb.SubmitTaskRequest) -> TaskDraft:
    """A task that is asked for; FIELD_INVALID."""
    if bool(request.node) == request.HasField("target"):
        raise field_error("node", "name either one host, or a target")
    if request.node:
        check_name("node", request.node)
    check_text("created_by", request.created_by)
    check_text("request_id", request.request_id)
    if request.max_attempts > MAX_ATTEMPTS:
        raise field_error("max_attempts", f"is {request.max_attempts}, at most {MAX_ATTEMPTS}")
    return TaskDraft(
        work=_work_from(request),
        node=request.node,
        target=None if request.node else read_target(request.target),
        max_attempts=request.max_attempts or DEFAULT_ATTEMPTS,
        created_by=request.created_by,
        request_id=request.request_id,
    )


def filter_from(request: pb.ListTasksRequest) -> Filter:
    """Which tasks are asked for; FIELD_INVALID."""
    if request.node:
        check_name("node", request.node)
    check_text("deployment_id", request.deployment_id)
    return Filter(request.node, tuple(request.states), request.kind, request.deployment_id)


def check_page_size(size: int) -> None:
    """FIELD_INVALID."""
    if size < 0:
        raise field_error("page_size", f"is {size}")


def _work_from(request: pb.SubmitTaskRequest) -> pb.ProfileWork | pb.CollectWork:
    if request.HasField("profile"):
        work = request.profile
        if not _NAME.fullmatch(work.model):
            raise field_error("profile.model", f"{work.model!r} is no model's name")
        if not work.version:
            raise field_error("profile.version", "versions count from 1")
        if not 0 <= work.budget_s <= MAX_BUDGET_S:
            raise field_error("profile.budget_s", f"is {work.budget_s}, at most {MAX_BUDGET_S}")
        return work
    if request.HasField("collect"):
        collect = request.collect
        if not _NAME.fullmatch(collect.dataset):
            raise field_error("collect.dataset", f"{collect.dataset!r} is no dataset's name")
        _check_count("collect.models", len(collect.models), MAX_GROUPS)
        for model in collect.models:
            if not _NAME.fullmatch(model):
                raise field_error("collect.models", f"{model!r} is no model's name")
        check_text("collect.description", collect.description, MAX_MESSAGE_CHARS)
        return collect
    raise field_error("work", "says neither what to profile nor what to collect")


def _check_count(field: str, count: int, most: int) -> None:
    if count > most:
        raise field_error(field, f"has {count}, at most {most} are taken")


def _check_bytes(field: str, message: Any, most: int) -> None:
    if message.ByteSize() > most:
        raise field_error(field, f"has {message.ByteSize()} bytes, at most {most} are kept")


def _cut(text: str) -> str:
    return text[:MAX_MESSAGE_CHARS].replace("\0", "")
