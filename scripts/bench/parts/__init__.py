"""What benchmarks are made of: their harness, the parts of a step, trainings to a loss.

May import: data_prep.core, pretrain.config, pretrain.data, pretrain.distributed, pretrain.engine,
    pretrain.model, pretrain.run, pretrain.run_folder, pretrain.training, scripts.baselines,
    scripts.pretrain_with_transformers.
"""
