"""Trackers that show metrics.jsonl elsewhere: wandb, TensorBoard, trackio and those of others.

May import: data_prep.core, data_prep.plugins, pretrain.config, pretrain.metrics, pretrain.model,
    pretrain.run_folder.
"""
