"""Shards to a trained, exported BERT: the files here are commands, each folder is one part.

Commands may import every part, and parts of data_prep; a part states what it may import.
"""
