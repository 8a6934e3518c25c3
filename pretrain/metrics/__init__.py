"""Metrics of a run and where they go: JSON lines, terminal, wandb, the batch script.

Imports huggingface, run_folder and what they may import.
"""
