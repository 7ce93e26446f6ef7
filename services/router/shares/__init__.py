"""Who may use how much of a site's uplink and of the tails' time."""
