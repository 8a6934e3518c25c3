"""DeepSpeed, used nowhere else: the training step, sharded state, snapshots.

May import: data_prep.core, pretrain.config, pretrain.data, pretrain.distributed, pretrain.model,
    pretrain.optim.
"""
