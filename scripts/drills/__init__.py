"""Faults injected into a small run, and what is expected of each.

May import: pretrain.checkpoint, pretrain.config, pretrain.data,
    pretrain.distributed, pretrain.engine, pretrain.run, pretrain.verification.
"""
