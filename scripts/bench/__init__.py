"""Benchmarks, each `python -m scripts.bench.<name>`.

May import: data_prep.build, data_prep.collect, data_prep.core, data_prep.dedup,
    data_prep.duplicates, data_prep.encode, data_prep.examples, data_prep.executors,
    data_prep.sources, data_prep.stores, data_prep.text, data_prep.tokenizer, data_prep.vocab,
    pretrain.checkpoint, pretrain.config, pretrain.data, pretrain.distributed, pretrain.engine,
    pretrain.model, pretrain.planning, scripts.baselines, scripts.bench.parts.
"""
