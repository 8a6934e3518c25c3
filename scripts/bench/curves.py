"""The losses of a training with stock `transformers` and of ours, plotted over each other.

    python -m scripts.bench.curves data=FOLDER [model=tiny] [steps=200] [sequences=8]
        [learning_rate=0.0005] [seed=1] [threads=1] [compile=1] [out=docs/curves_200_steps.png]

`data` is a folder of shards with its manifest, such as data_dir/len128. All start from the same
weights and see the same examples with the same masks, step by step: theirs padded to the shards'
length, ours packed, and ours compiled in static shapes. The trainings use fp32, no dropout, and
AdamW with a tenth of the steps to warm up and a linear decay. Sums are rounded in another order,
and training lets that grow slowly. The largest difference, relative to the loss, is printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_prep.stores.shard_reader import Shards
from pretrain.config.settings import Precision
from pretrain.data.packing import Shape, pack
from scripts.baselines.transformers_step import (
    compiled_twin,
    hugging_face_twin,
    optimizer_of,
    packed_loss,
    packed_model,
    padded,
)
from scripts.bench.parts.harness import Record, benchmark, run, settings_of

STYLES = {"packed": ("black", "-"), "compiled": ("#d55e00", ":")}


@dataclass(frozen=True)
class Curves:
    """Losses of each step, MLM and NSP together, in nats."""

    theirs: list[float]
    ours: dict[str, list[float]]  # packed, compiled

    def differences(self, name: str) -> list[float]:
        """The difference at each step, relative to the loss."""
        return [abs(a - b) / abs(a) for a, b in zip(self.theirs, self.ours[name], strict=True)]


@benchmark("curves")
def main(
    data: str,
    model: str = "tiny",
    steps: int = 200,
    sequences: int = 8,
    learning_rate: float = 0.0005,
    seed: int = 1,
    threads: int = 1,
    compile: int = 1,
    out: str = "docs/curves_200_steps.png",
) -> Record:
    """The benchmark."""
    shards = Shards.open(Path(data), "train")
    curves = train(shards, model, steps, sequences, learning_rate, seed, bool(compile))
    draw(curves, Path(out))
    first, last = curves.theirs[0], curves.theirs[-1]
    print(f"losses of {steps} steps: {first:.4f} to {last:.4f}")
    largest = {name: max(curves.differences(name)) for name in curves.ours}
    for name, difference in largest.items():
        print(f"{name}: largest difference, relative to the loss: {difference:.2g}")
    return {"largest_difference": largest, "first_loss": first, "last_loss": last}


def train(
    shards: Shards,
    model: str,
    steps: int,
    sequences: int,
    learning_rate: float,
    seed: int,
    is_compiled: bool,
) -> Curves:
    """Train all models side by side, step by step."""
    settings = settings_of(
        model,
        "model.hidden_dropout_prob=0",
        "model.attention_probs_dropout_prob=0",
        f"run.seed={seed}",
        f"data.pairs={shards.manifest.pairs.name}",
    )
    packed = packed_model(settings, shards.manifest.vocab_size)
    theirs = hugging_face_twin(packed).train()
    ours = {"packed": packed}
    if is_compiled:
        ours["compiled"] = compiled_twin(packed, Precision.fp32)
    optimizers = {name: optimizer_of(one, settings) for name, one in ours.items()}
    their_optimizer = optimizer_of(theirs, settings)
    width = shards.manifest.seq_len
    # one for all steps, with room for the longest sequences
    shape = Shape(sequences * width, 2 * sequences, sequences * -(-width // 4))
    rng = np.random.default_rng(seed)
    curves = Curves([], {name: [] for name in ours})
    for step in range(steps):
        examples = shards.read(rng.integers(0, shards.num_examples, sequences))
        batch, filled = pack(examples, width), pack(examples, width, shape)
        rate = learning_rate * min((step + 1) / max(1, steps // 10), 1 - step / steps)
        losses = [(their_optimizer, theirs(**padded(batch, width)).loss, curves.theirs)]
        for name, one in ours.items():
            loss = packed_loss(one, filled if name == "compiled" else batch)
            losses.append((optimizers[name], loss, curves.ours[name]))
        for optimizer, loss, into in losses:
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            into.append(loss.item())
    return curves


def draw(curves: Curves, path: Path) -> None:
    """Plot the curves, and below them their differences from that of transformers."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    steps = range(1, len(curves.theirs) + 1)
    above.plot(steps, curves.theirs, color="0.75", linewidth=6, label="transformers, padded")
    for name, losses in curves.ours.items():
        color, line = STYLES[name]
        above.plot(steps, losses, color=color, linestyle=line, linewidth=1.3, label=f"ours, {name}")
        differences = np.maximum(curves.differences(name), 1e-9)
        below.semilogy(steps, differences, color=color, linestyle=line, linewidth=1.1)
    above.set_ylabel("loss (nats)")
    above.legend(frameon=False)
    below.set_ylabel("difference / loss")
    below.set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    run(main)
