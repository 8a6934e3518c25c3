"""WordPiece: the vocabulary file, training, encoding, and the files that transformers loads.

May import: data_prep.core.
"""
