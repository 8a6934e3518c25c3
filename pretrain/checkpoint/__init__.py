"""Save, find, verify and resume checkpoints.

Imports planning, engine and what they may import.
"""
