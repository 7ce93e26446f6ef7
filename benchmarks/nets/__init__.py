"""Vision networks written in plain torch, faithful in structure, with random weights."""
