"""The only package that knows DeepSpeed: the training step, sharded state, snapshots.

Imports model and what it may import.
"""
