"""Fine-tuning of a Hugging Face BERT with stock `transformers`: nothing of `pretrain` or `data_prep`.

May import: nothing of this project.
"""
