"""Fine-tuning, prediction, benchmarks and the fault drill: the files here are commands.

finetune_*, predict and finetuning/ import nothing of pretrain or data_prep: stock `transformers`
reads the export. Nothing in data_prep or pretrain imports scripts.
"""
