"""Trackers that show metrics.jsonl elsewhere: wandb, TensorBoard, trackio and those of others.

May import: data_prep.core, pretrain.config, pretrain.metrics, pretrain.model, pretrain.run_folder.
"""
