"""The table of commands."""

from __future__ import annotations

import sys

import typer

from splitmesh.cli import (
    adapting,
    compressing,
    datasets,
    deploying,
    deployments,
    fleet_nodes,
    infer,
    keys,
    models,
    outcomes,
    planning,
    profiling,
    route,
    samples,
    services,
    splitting,
    tasks,
)
from splitmesh.cli.output import how_to_install
from splitmesh.errors import Reason

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run one vision model across factory edges and a cloud. Addresses: SPLITMESH_HEAD for infer and stream; "
    "SPLITMESH_STATIC_ADDRESSES, or SPLITMESH_DISCOVERY=consul, for the rest.",
)
app.command()(infer.infer)
app.command()(infer.stream)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(datasets.app, name="datasets")
app.command()(profiling.profile)
app.command()(planning.plan)
app.command()(splitting.split)
app.command()(adapting.adapt)
app.command()(compressing.compress)
app.add_typer(compressing.app, name="compressions")
app.add_typer(route.app, name="route")
app.add_typer(samples.app, name="samples")
app.command()(outcomes.outcomes)
app.command()(services.services)
app.add_typer(fleet_nodes.app, name="nodes")
app.command()(deploying.deploy)
app.command()(deploying.rollback)
app.add_typer(deployments.app, name="deployments")
app.add_typer(tasks.app, name="tasks")

EXTRAS = {"onnx": "cloud", "onnxruntime": "cloud", "scipy": "cloud", "constriction": "cloud", "matplotlib": "plot"}
"""What is not part of the base package, and the extra that brings it."""


def main() -> None:
    """Entry point of the ``splitmesh`` command."""
    try:
        app()
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        print(f"splitmesh: this command needs {error.name}: {how_to_install(EXTRAS[error.name])}", file=sys.stderr)
        raise SystemExit(1) from error
    except OSError as error:
        if error.filename is None:  # not about a file that the command was given
            raise
        print(f"splitmesh: {Reason.FIELD_INVALID.value}: {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(1) from error
