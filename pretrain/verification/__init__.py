"""Replays the next steps of a run on copies and compares.

May import: data_prep.core, pretrain.checkpoint, pretrain.config, pretrain.distributed,
    pretrain.run_folder.
"""
