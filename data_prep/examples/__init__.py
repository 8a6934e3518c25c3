"""Token ids to masked sentence pairs: pure functions, every random draw keyed by a counter.

May import: data_prep.core, data_prep.stores, data_prep.tokenizer.
"""
