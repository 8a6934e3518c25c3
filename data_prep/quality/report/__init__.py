"""Shows what the audit has measured: tables, plots, a page and a data set card.

May import: data_prep.core, data_prep.examples, data_prep.stores.
"""
