"""Rules that drop or change documents between collect and encode, each from a published source.

May import: data_prep.core, data_prep.stores, data_prep.text.
"""
