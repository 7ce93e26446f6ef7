"""The schema's history, one revision a module; run by ``schema``, never by hand."""
