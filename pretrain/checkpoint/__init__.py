"""Saves, finds, verifies and resumes checkpoints; a folder is whole or absent.

May import: data_prep.core, data_prep.stores, pretrain.config, pretrain.distributed,
    pretrain.engine, pretrain.optim.
"""
