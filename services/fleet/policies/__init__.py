"""What the applications of hosts may use: rules for targets, and what they mean for each host."""
