"""Token ids to masked sentence pairs: pure functions, every random draw keyed by a counter.

Imports core, text, stores and tokenizer.
"""
