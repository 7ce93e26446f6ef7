"""``splitmesh route``: what may go wrong, what follows from it, who gets how much of a link, and what has drifted.

Only the table of its commands; each is where its subject is.
"""

from __future__ import annotations

import typer

from splitmesh.cli import route_drift, route_policy, route_shares

app = typer.Typer(
    no_args_is_help=True, help="Goals, policies, shares of the uplinks and drift, as the router has them."
)
app.command()(route_policy.goals)
app.command()(route_policy.policy)
app.command()(route_policy.why)
app.command()(route_policy.decide)
app.command()(route_shares.site)
app.command()(route_shares.shares)
app.command()(route_drift.drift)
app.command()(route_drift.watch)
app.command()(route_drift.resolve)
