"""What other installed packages add: sources, optimizers and trackers, found by entry points.

May import: data_prep.core.
"""
