"""Measures and judges a corpus and its shards, and shows the result.

May import: data_prep.core, data_prep.examples, data_prep.stores, data_prep.tokenizer.
"""
