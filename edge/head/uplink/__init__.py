"""Whose hard samples may cross, within what this head may use."""
