"""Exact and near duplicates across all sources, by MinHash.

May import: data_prep.core, data_prep.stores.
"""
