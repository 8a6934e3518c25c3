"""Exact and near copies of documents: signatures by MinHash, candidates by bands, comparison.

May import: data_prep.core, data_prep.executors, data_prep.stores.
"""
