"""The maths of BERT over packed rows, with its FLOP count: no process group, no DeepSpeed, no files.

Imports data, optim, config and distributed.
"""
