"""To and from a Hugging Face folder: names of weights, export, loading, model card, init_from.

Imports checkpoint and what it may import.
"""
