"""Run a job's tasks in local processes, a Slurm array or Ray: restartable, isolated, same bytes.

May import: data_prep.core.
"""
