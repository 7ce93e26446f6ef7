"""The hosts: who they are, what they serve, whose agent is connected."""
