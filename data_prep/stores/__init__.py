"""The three formats on disk (documents, tokens, shards): writers, readers, manifests.

May import: data_prep.core.
"""
