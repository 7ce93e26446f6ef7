"""Hard, audited and disputed samples, kept and served."""
