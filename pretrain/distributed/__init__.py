"""The processes of a run: ranks, rendezvous, signals, watchdog.

Imports nothing else of pretrain but config.
"""
