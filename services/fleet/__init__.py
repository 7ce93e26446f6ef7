"""The fleet: every site's hosts, what they serve and what they are told to do."""
