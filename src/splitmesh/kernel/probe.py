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

# The same variables as the settings `port` and `processes`; kernel.config itself would double the start-up time of a check.
PORT_VARIABLE = "SPLITMESH_PORT"
PROCESSES_VARIABLE = "SPLITMESH_PROCESSES"
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
    own = f"127.0.0.1:{own_port}"
    parser.add_argument(
        "address",
        metavar="HOST:PORT",
        nargs="?" if own_port else None,
        default=own,
        help=f"of the server; 127.0.0.1 at ${PORT_VARIABLE} and the ports after it of ${PROCESSES_VARIABLE}, where set",
    )
    parser.add_argument(
        "--shared",
        action="store_true",
        help=f"several processes share ${PORT_VARIABLE}: ask each at its own port after it",
    )
    parser.add_argument("--service", default="", help="full gRPC service name; without it the process as a whole")
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, metavar="S", help="seconds to wait for an answer")
    chosen = parser.parse_args(argv)
    answers = []
    for address in [chosen.address] if chosen.address != own else _every_process(own_port, shared=chosen.shared):
        serving, status = check(address, chosen.service, chosen.deadline)
        print(f"{address} {chosen.service or '(process)'}: {status}")
        answers.append(serving)
    return 0 if all(answers) else 1


def _every_process(port: str, *, shared: bool) -> list[str]:
    """Addresses of a service that runs in several processes, at consecutive ports."""
    processes = int(os.environ.get(PROCESSES_VARIABLE) or 1)
    first = int(port) + (1 if shared and processes > 1 else 0)
    return [f"127.0.0.1:{own}" for own in range(first, first + processes)]


if __name__ == "__main__":
    sys.exit(main())
