"""Faults injected into a small run, and what is expected of each."""
