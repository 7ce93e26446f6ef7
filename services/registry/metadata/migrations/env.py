"""Runs the revisions on the connection, and in the transaction, that ``schema`` hands over."""

from __future__ import annotations

from alembic import context

from services.registry.metadata.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
