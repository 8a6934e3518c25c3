"""Files, folders, URLs and data sets as inputs: listed, cut into tasks, unpacked, read as rows.

May import: data_prep.core, data_prep.stores.
"""
