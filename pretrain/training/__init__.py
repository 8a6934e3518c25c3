"""The training loop and what it uses: phases, anomalies, evaluation, preflight, summary.

May import: data_prep.core, data_prep.examples, data_prep.stores, data_prep.tokenizer,
    pretrain.checkpoint, pretrain.config, pretrain.data, pretrain.distributed, pretrain.engine,
    pretrain.huggingface, pretrain.metrics, pretrain.model, pretrain.optim, pretrain.run_folder,
    pretrain.trackers.
"""
