"""Shards to the packed tensors of one rank's micro-batches: order, balancing, packing, loaders.

May import: data_prep.build, data_prep.collect, data_prep.core, data_prep.encode,
    data_prep.examples, data_prep.stores, data_prep.tokenizer, data_prep.vocab, pretrain.config,
    pretrain.distributed.
"""
