"""Transactions on SQLite and PostgreSQL for services: threads, ownership, migrations. Knows no table."""
