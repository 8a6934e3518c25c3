"""The three formats on disk (documents, tokens, shards): writers, readers, manifests.

Imports core.
"""
