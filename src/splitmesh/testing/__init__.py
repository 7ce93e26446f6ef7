"""A mesh on one machine for tests, demos and benchmarks: launchers, link relay, receivers, real parts."""
