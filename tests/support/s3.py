"""A server that speaks S3, for tests: moto's (github.com/getmoto/moto), in this process, in memory. It is not S3 itself.

Whoever imports this has clients read the description of S3 once a process and not once each, which is most of their work.
"""

from __future__ import annotations

import functools
import json
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import botocore.session  # type: ignore[import-untyped]
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

botocore.session.create_loader = functools.cache(botocore.session.create_loader)


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, and how to reach it."""

    name: str
    endpoint_url: str

    @property
    def url(self) -> str:
        """A folder of it."""
        return f"s3://{self.name}/contents"

    @property
    def options(self) -> dict[str, Any]:
        """For fsspec: fails fast, so that a test of failures is quick."""
        return {
            "endpoint_url": self.endpoint_url,
            "key": "moto-key",
            "secret": "moto-secret",
            "client_kwargs": {"region_name": "us-east-1"},
            "config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 2, "read_timeout": 5},
        }

    @property
    def options_json(self) -> str:
        """The same as the registry's setting `contents_options`."""
        return json.dumps(self.options)


def objects(bucket_name: str) -> dict[str, bytes]:
    """What is in a bucket of a server in this process, by key."""
    keys: Any = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket_name].keys
    return {name: keys[name].value for name in list(keys)}


class S3:
    """The server; buckets are made as they are asked for."""

    def __init__(self, endpoint_url: str) -> None:
        self.endpoint_url = endpoint_url

    def bucket(self) -> Bucket:
        """A new one."""
        name = f"bucket-{uuid4().hex}"
        request = urllib.request.Request(
            f"{self.endpoint_url}/{name}",
            method="PUT",
            headers={"Authorization": "AWS4-HMAC-SHA256 Credential=moto-key/20200101/us-east-1/s3/aws4_request"},
        )
        with urllib.request.urlopen(request, timeout=10):
            return Bucket(name, self.endpoint_url)


@contextmanager
def serving_s3() -> Iterator[S3]:
    """A server on a free port while the block lasts."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3(f"http://{host}:{port}")
    finally:
        server.stop()
