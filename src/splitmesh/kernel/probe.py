"""Asks a server whether it serves, by grpc.health.v1: ``python -m splitmesh.kernel.probe HOST:PORT [--service NAME]``.

For health checks of containers, which must not need a shell, curl or grpcurl. Exit code 0 when SERVING, 1 on any other answer or
none within the deadline. Knows no service: a process as a whole answers to the empty name.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

# The same variable as the setting `port`; kernel.config itself would double the start-up time of a check.
PORT_VARIABLE = "SPLITMESH_PORT"
DEADLINE_S = 3.0


def check(address: str, service: str = "", deadline_s: float = DEADLINE_S) -> tuple[bool, str]:
    """Whether the service is SERVING, and its status, or the reason that there is none, in words."""
    # A proxy from the environment must not answer for the container.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=deadline_s)
        except grpc.RpcError as error:
            return False, f"{error.code().name}: {error.details()}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return answer.status == health_pb2.HealthCheckResponse.SERVING, status


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="splitmesh.kernel.probe", description="Exit code 0 when a server serves.")
    own_port = os.environ.get(PORT_VARIABLE, "")
    parser.add_argument(
        "address",
        metavar="HOST:PORT",
        nargs="?" if own_port else None,
        default=f"127.0.0.1:{own_port}",
        help=f"of the server; 127.0.0.1 at ${PORT_VARIABLE} where that is set",
    )
    parser.add_argument("--service", default="", help="full gRPC service name; without it the process as a whole")
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, metavar="S", help="seconds to wait for an answer")
    chosen = parser.parse_args(argv)
    serving, status = check(chosen.address, chosen.service, chosen.deadline)
    print(f"{chosen.address} {chosen.service or '(process)'}: {status}")
    return 0 if serving else 1


if __name__ == "__main__":
    sys.exit(main())
