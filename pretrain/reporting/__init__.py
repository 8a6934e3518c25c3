"""One self-contained HTML page about a run.

Imports metrics, run_folder and what they may import.
"""
