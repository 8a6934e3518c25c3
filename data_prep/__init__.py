"""Text to shards: the files here are commands (jobs), each folder is one part.

Commands may import every part of data_prep, and nothing of pretrain or scripts.
"""
