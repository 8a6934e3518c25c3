"""What is in runs/<name>/: opening it, its lock, environment, JSON lines, history.

Imports checkpoint and what it may import.
"""
