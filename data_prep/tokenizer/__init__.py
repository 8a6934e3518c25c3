"""WordPiece: the vocabulary file, training, encoding, and the files that transformers loads.

Imports core and text.
"""
