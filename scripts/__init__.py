"""Fine-tuning, prediction, benchmarks and the fault drill: the files here are commands.

finetune_*, predict and finetuning/ import nothing of pretrain, and of data_prep only core: stock
`transformers` reads the export. Nothing in data_prep or pretrain imports scripts.
"""

import data_prep  # noqa: F401  which answers for a command that does not get further
