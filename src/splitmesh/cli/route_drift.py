"""``splitmesh route drift``, ``watch`` and ``resolve``: what has drifted, each drift as it comes, and the end of one."""

from __future__ import annotations

import asyncio
import json as jsons
import shlex
import sys
from collections import deque
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated

import typer

from splitmesh.cli.connect import channels
from splitmesh.cli.output import JsonOption, run, show_json, show_line, show_table
from splitmesh.client.drift import RESOLVED, TIGHTENED, AuditEstimate, DriftClient, DriftEvent, Drifts
from splitmesh.errors import field_error

EVENTS = ("number", "version", "time", "state", "camera", "class", "what", "before", "now", "collected", "threshold")
AUDITS = ("camera", "version", "disagree", "at least", "at most", "audited", "accepted")
MAX_WAITING = 1_000
"""Events that wait for a command that is still running; the oldest give way."""


def drift(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int, typer.Option(help="One version; 0: all.", min=0)] = 0,
    json: JsonOption = False,
) -> None:
    """Show what has drifted, and how often the exits' answers disagree by the audits, with 95 % intervals."""

    async def ask() -> Drifts:
        async with channels() as opened:
            return await DriftClient(opened).get_drift(model, version)

    found = run(ask())
    if json:
        show_json(found)
        return
    told = ", ".join(f"v{number}: {count:,}" for number, count in sorted(found.sights.items())) or "none"
    heading = "drifts" if found.events else "nothing has drifted"
    show_table(f"{model}: {heading} (samples told: {told})", EVENTS, [_event_row(one) for one in found.events])
    for event in found.events:
        if event.state != RESOLVED:
            print(f"drift {event.number}: {event.why}")
    if found.audits:
        show_table(
            "Answers of exits that the tail contradicts, by the audits",
            AUDITS,
            [_audit_row(one) for one in found.audits],
        )


def watch(
    model: Annotated[str, typer.Argument(help="Name of the model; of all where it is left out.")] = "",
    after: Annotated[int, typer.Option(help="Only events with a larger number.", min=0)] = 0,
    exec_: Annotated[
        str,
        typer.Option(
            "--exec",
            help="Command to run for each new drift, one at a time, with the event as JSON on its standard input.",
        ),
    ] = "",
    json: JsonOption = False,
) -> None:
    """Print drifts as they come, and each change of their state, until interrupted."""

    async def follow() -> None:
        command = _command(exec_)
        async with channels() as opened, _Runner(command, after) as runner:
            events = DriftClient(opened).watch_drift(model, after=after)
            async with aclosing(events):
                async for event in events:
                    if json:
                        show_line(event)
                    else:
                        print(_line(event), flush=True)
                    runner.tell(event)

    run(follow())


def resolve(
    number: Annotated[int, typer.Argument(help="Number of the drift, as `splitmesh route drift` shows it.", min=1)],
    json: JsonOption = False,
) -> None:
    """End what a drift tightened: its camera and class go by the policy again."""

    async def ask() -> DriftEvent:
        async with channels() as opened:
            return await DriftClient(opened).resolve(number)

    event = run(ask())
    if json:
        show_json(event)
    else:
        print(f"drift {event.number} of {event.model} v{event.version} is {event.state}")


class _Runner:
    """Runs a command for each event above ``after`` that is new and tightened, one at a time.

    No shell; its output goes where ours goes.
    """

    def __init__(self, command: list[str], after: int) -> None:
        self._command, self._after = command, after
        self._waiting: deque[DriftEvent] = deque()
        self._known: set[int] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Runner:
        if self._command:
            self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def tell(self, event: DriftEvent) -> None:
        """Run the command for it, soon, if it is a new one."""
        if event.number <= self._after or event.number in self._known:
            return
        if self._task is None or event.state != TIGHTENED:
            return
        self._known.add(event.number)
        self._waiting.append(event)
        if len(self._waiting) > MAX_WAITING:
            left = self._waiting.popleft()
            _complain(f"drift {left.number} is left out: {MAX_WAITING} wait for the command already")
        self._wake.set()

    async def _run(self) -> None:
        while True:
            while self._waiting:
                await self._start(self._waiting.popleft())
            self._wake.clear()
            await self._wake.wait()

    async def _start(self, event: DriftEvent) -> None:
        try:
            process = await asyncio.create_subprocess_exec(*self._command, stdin=asyncio.subprocess.PIPE)
        except OSError as error:
            _complain(f"drift {event.number}: {self._command[0]!r} cannot be run: {error.strerror}")
            return
        try:
            await process.communicate(_json(event))
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        if process.returncode:
            _complain(f"drift {event.number}: {self._command[0]!r} ended with code {process.returncode}")


def _command(text: str) -> list[str]:
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise field_error("--exec", f"{text!r} is no command: {error}") from error
    if text and not command:
        raise field_error("--exec", "is empty")
    return command


def _json(event: DriftEvent) -> bytes:
    return (jsons.dumps(asdict(event) | {"time": event.time.isoformat()}) + "\n").encode()


def _complain(text: str) -> None:
    print(f"splitmesh: {text}", file=sys.stderr, flush=True)


def _line(event: DriftEvent) -> str:
    return f"{event.time:%Y-%m-%d %H:%M:%S} UTC  drift {event.number}  {event.model} v{event.version}  {event.state}: {event.why}"


def _event_row(event: DriftEvent) -> list[object]:
    return [
        event.number,
        event.version,
        f"{event.time:%Y-%m-%d %H:%M:%S} UTC",
        event.state,
        event.camera or "all",
        event.label or "all",
        event.kind,
        event.before,
        event.now,
        f"{event.collected:,} of {event.needed:,}" if event.state == TIGHTENED else "",
        _threshold(event),
    ]


def _threshold(event: DriftEvent) -> str:
    if event.state == RESOLVED:
        return "the policy's"
    return "escalates" if event.threshold > 1 else f"{event.threshold:.4g}"


def _audit_row(one: AuditEstimate) -> list[object]:
    rate = "not known" if one.rate is None else f"{one.rate:.2%}"
    return [one.camera or "all", one.version, rate, f"{one.low:.2%}", f"{one.high:.2%}", one.audited, one.accepted]
