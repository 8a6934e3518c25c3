"""Baselines of benchmarks and tests: methods of peers, synthetic data.

May import: data_prep.core, data_prep.examples, data_prep.stores, data_prep.tokenizer,
    pretrain.config, pretrain.data, pretrain.huggingface, pretrain.model, pretrain.optim.
"""
