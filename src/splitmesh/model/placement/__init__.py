"""Which tier runs which operator: exact answers over every placement of a graph, with a certificate. Pure arithmetic."""
