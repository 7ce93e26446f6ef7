"""Calls to a Consul agent's HTTP API: a deadline, a size limit and one kind of error for every call.

Knows HTTP, tokens and deadlines; does not know what is asked (``discovery_consul`` does). Spoken with aiohttp itself:
py-consul's asyncio client has no deadline per call and no limit on a body, lets an environment variable win over the
token given, and asks for one's own service without a token.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from splitmesh.errors import MeshError, Reason

_MAX_BODY_BYTES = 8 << 20
_MAX_CONNECTIONS = 128
"""Each watch holds one; an agent takes 200 from one address by default."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the agent answered."""

    body: Any
    """The decoded JSON; None when there was none."""
    index: int
    """``X-Consul-Index``, 0 without one."""
    missing: bool
    """The agent knows no such thing."""


class ConsulAgentApi:
    """One agent's API.

    Args:
        address: ``host:port``.
        token: ACL token sent with every call.
        tls: speaks HTTPS with these settings when given.
        timeout_s: seconds a call may take.
    """

    def __init__(self, address: str, token: str | None, tls: ssl.SSLContext | None, timeout_s: float) -> None:
        self._base = f"{'https' if tls else 'http'}://{address}"
        self._headers = {"X-Consul-Token": token} if token else {}
        self._tls = tls
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        *,
        hold_s: float = 0.0,
        may_miss: bool = False,
    ) -> Reply:
        """One call.

        Args:
            method: HTTP's.
            path: from ``/v1``, quoted.
            params: the query.
            body: sent as JSON.
            hold_s: seconds the agent may hold the answer back, on top of the deadline.
            may_miss: whether not to know the thing is an answer.

        Raises:
            MeshError: SERVICE_UNAVAILABLE for anything but an answer in time.
        """
        if self._session is None:  # not in __init__: a session belongs to the running loop
            connector = aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, ssl=self._tls or True)
            # aiohttp's own limit of five minutes would cut a long hold
            timeout = aiohttp.ClientTimeout(total=None)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=timeout)
        url = URL(self._base + path, encoded=True)
        try:
            async with (
                asyncio.timeout(self._timeout_s + hold_s),
                # A redirect would carry the token to wherever it points.
                self._session.request(method, url, params=params, json=body, allow_redirects=False) as response,
            ):
                text = await _bounded(response)
                missing = response.status == 404 or (response.status == 500 and text.startswith(b"Unknown service"))
                if response.status != 200 and not (may_miss and missing):
                    raise _unavailable(f"answers {response.status}: {text[:200].decode(errors='replace').strip()}")
                found = json.loads(text) if text and not missing else None
                return Reply(found, int(response.headers.get("X-Consul-Index", "0")), missing)
        except TimeoutError:
            raise _unavailable("does not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # RuntimeError: the session was closed meanwhile
            raise _unavailable(f"cannot be asked: {error}") from error

    async def close(self) -> None:
        """Ends calls in flight with SERVICE_UNAVAILABLE."""
        if self._session is not None:
            await self._session.close()


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    read = bytearray()
    async for piece in response.content.iter_chunked(1 << 16):
        read += piece
        if len(read) > _MAX_BODY_BYTES:
            raise _unavailable(f"answers more than {_MAX_BODY_BYTES} bytes")
    return bytes(read)


def _unavailable(what: str) -> MeshError:
    return MeshError(Reason.SERVICE_UNAVAILABLE, f"the Consul agent {what}", retry_after_s=1.0)
