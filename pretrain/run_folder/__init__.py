"""The contents of runs/<name>/: opening it, its lock, environment, JSON lines, history.

May import: data_prep.core, pretrain.checkpoint, pretrain.config.
"""
