"""Contents by digest: the port, and stores behind it."""
