"""Metrics of a run and where they go: JSON lines, terminal, the batch script.

May import: data_prep.core, pretrain.config, pretrain.data, pretrain.distributed, pretrain.model,
    pretrain.run_folder.
"""
