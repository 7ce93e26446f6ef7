"""The schema's history, one revision a module; run by ``splitmesh.sql.schema``, never by hand."""
