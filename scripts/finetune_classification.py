"""Fine-tune a BERT folder to predict a label or a number for one text or two.

    python -m scripts.finetune_classification +task=sst2 model=runs/x/export [SETTING=VALUE ...]

GLUE: cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, wnli; custom: your own csv, tsv or jsonl.

{finetune.yaml}
"""

from functools import partial

from data_prep.core.command import status_of
from scripts.finetuning.run import main
from scripts.finetuning.settings import Kind

if __name__ == "__main__":
    raise SystemExit(status_of(partial(main, Kind.classification)))
