"""Fine-tune a BERT folder to answer questions by a span of a text.

    python -m scripts.finetune_qa +task=squad model=runs/x/export [SETTING=VALUE ...]

squad: SQuAD 1.1; squad2: 2.0, with questions that have no answer.

{finetune.yaml}
"""

from functools import partial

from data_prep.core.command import status_of
from scripts.finetuning.run import main
from scripts.finetuning.settings import Kind

if __name__ == "__main__":
    raise SystemExit(status_of(partial(main, Kind.qa)))
