"""Runs the tasks of a job in local processes, a Slurm array or Ray: restartable, isolated, same bytes.

Imports core.
"""
