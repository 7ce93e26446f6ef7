"""Deployments: a version on its way to many hosts, tried first where that is asked for, and back in one step."""
