"""One self-contained HTML page about a run.

May import: data_prep.core, pretrain.metrics, pretrain.planning, pretrain.run_folder.
"""
