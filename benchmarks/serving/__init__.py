"""What the serving benchmarks share: two nets, a lean load client, and what a process tree costs."""
