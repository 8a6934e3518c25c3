"""Which engine settings are fastest on this machine: trials in processes of their own.

May import: data_prep.core, data_prep.stores, pretrain.config, pretrain.data,
    pretrain.distributed, pretrain.engine, pretrain.metrics, pretrain.model, pretrain.planning,
    pretrain.training.
"""
