"""Predictions of a Hugging Face BERT with stock `transformers`, and nothing of `pretrain`.

May import: data_prep.core, scripts.finetuning.
"""
