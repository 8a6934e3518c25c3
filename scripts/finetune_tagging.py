"""Fine-tune a BERT folder to tag every word.

    python -m scripts.finetune_tagging +task=wnut17 model=runs/x/export [SETTING=VALUE ...]

wnut17: named entities; tags: your own CoNLL columns or jsonl.

{finetune.yaml}
"""

from functools import partial

from data_prep.core.command import status_of
from scripts.finetuning.run import main
from scripts.finetuning.settings import Kind

if __name__ == "__main__":
    raise SystemExit(status_of(partial(main, Kind.tagging)))
