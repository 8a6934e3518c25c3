"""What the audit measures of a corpus and its shards, and how it shows it.

May import: data_prep.core, data_prep.examples, data_prep.stores.
"""
