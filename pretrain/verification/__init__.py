"""Replays the next steps of a run on copies and compares.

Imports metrics, run_folder and what they may import.
"""
