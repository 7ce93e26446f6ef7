"""Partition service: profiles registered models, plans where to cut them, makes split versions."""
