"""What a run is: typed settings, the checks between them, phases, loading.

May import: data_prep.core.
"""
