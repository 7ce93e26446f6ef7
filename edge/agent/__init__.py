"""The agent of one MEC host: the one connection from inside the factory to the fleet."""
