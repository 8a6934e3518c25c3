"""What a GPU is asked besides the benchmarks: its tests, the profile of a run, its best settings.

Like the benchmarks, each prints a line of JSON at its end.

May import: data_prep.core, pretrain.metrics, pretrain.run_folder, pretrain.tune, pretrain.tuning,
    pretrain.verification, scripts.baselines, scripts.bench.parts.
"""
