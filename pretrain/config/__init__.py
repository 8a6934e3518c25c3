"""What a run is: typed settings, the checks between them, phases, loading.

Imports only data_prep.core.
"""
