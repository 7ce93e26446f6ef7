"""Contents as bytes: patches between them, plain names. Knows no network."""
