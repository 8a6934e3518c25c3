"""The maths of BERT over packed rows and its FLOP count: no process group, DeepSpeed or files.

May import: data_prep.core, pretrain.config, pretrain.data.
"""
