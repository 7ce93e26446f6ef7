"""Keys, signatures and who may sign what. Knows no network and no model."""
