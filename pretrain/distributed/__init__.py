"""The processes of a run: ranks, rendezvous, signals, watchdog.

May import: data_prep.core.
"""
