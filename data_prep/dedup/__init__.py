"""Exact and near duplicates across all sources, by MinHash.

Imports core, text and stores.
"""
