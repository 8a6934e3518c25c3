"""Uploads runs, exported models and shards to the Hugging Face hub.

May import: data_prep.core, pretrain.checkpoint, pretrain.config, pretrain.distributed,
    pretrain.reporting, pretrain.run_folder, pretrain.training.
"""
