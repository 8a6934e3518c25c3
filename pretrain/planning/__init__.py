"""A run before it runs: steps, tokens, memory, time, money; and the plan next to the outcome.

Imports model and what it may import.
"""
