"""The commands that pip installs, such as `bert-data`: doors to the modules that users start.

May import: data_prep.core.
"""
