"""The lease table: what hosts are told to do, and what became of it."""
