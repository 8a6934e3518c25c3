"""To and from a Hugging Face folder: weight names, export, loading, model card, init_from.

May import: data_prep.core, data_prep.stores, data_prep.tokenizer, pretrain.checkpoint,
    pretrain.config, pretrain.model.
"""
