"""A run before it runs: steps, tokens, memory, time, cost; and the plan next to the outcome.

May import: data_prep.core, data_prep.stores, pretrain.config, pretrain.data, pretrain.model,
    pretrain.optim.
"""
