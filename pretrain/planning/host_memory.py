"""Numbers that cannot fit this host's memory, refused by arithmetic before anything is allocated.

All counts are least ones, of parts that exist at the same time, so that nothing that fits is
refused. Whether the rest fits a GPU is tried by the rehearsal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data_prep.core.config import SettingsError
from data_prep.core.files import memory_bytes
from data_prep.stores.shard_records import ShardsManifest
from pretrain.config.phases import Phase
from pretrain.config.settings import Precision, Settings
from pretrain.data.balancing import micro_steps
from pretrain.data.train_loader import BATCHES_AHEAD
from pretrain.model import flops
from pretrain.optim.matrices import matrix_elements
from pretrain.planning import memory

GB = 1e9
# Measured with a loader ahead of its training: 1.36 GB for batches of 200,000 sequences of 110
# tokens, where these count 1.30
SEQUENCE_BYTES = 72  # per sequence of a global batch while it is dealt, on every rank
PACKED_BYTES = 28  # per packed sequence, besides its tokens
TOKEN_BYTES = 12  # ids, positions, segments
MASKED_BYTES = 16  # positions, labels
# Of the activations that a plan counts, which is right within some percent
SURE_SHARE = 0.8


def check_host_memory(
    phases: Sequence[Phase],
    manifests: Sequence[ShardsManifest],
    ranks: int,
    here: int,
    is_cpu: bool,
) -> None:
    """Raise SettingsError, with bound and cure, if a phase cannot fit the memory of this host.

    `manifests` are those of the phases' shards; `here`: how many of the `ranks` are on this host.
    """
    room = memory_bytes()
    wrong = [*_of_model(phases[0].settings, manifests[0], ranks, here, is_cpu, room)]
    for phase, manifest in zip(phases, manifests, strict=True):
        of_phase = f"phase {phase.number}: " if len(phases) > 1 else ""
        faults = [*_of_batch(phase.settings, manifest, ranks, here, room)]
        if is_cpu and not wrong and not faults:
            faults = [*_of_micro_batch(phase.settings, manifest, ranks, here, room)]
        wrong += [of_phase + fault for fault in faults]
    if wrong:
        raise SettingsError("\n".join(wrong))


def _of_model(
    settings: Settings, manifest: ShardsManifest, ranks: int, here: int, is_cpu: bool, room: int
) -> Iterator[str]:
    """Weights of every rank, a checkpoint's copy and, on a CPU, gradients and moments."""
    n = flops.parameters(settings.model, manifest.vocab_size, settings.data.pairs)
    lacking = 4 * matrix_elements(settings.model, settings.optim.name)  # second moments
    need = here * (_states(n, ranks, is_cpu) - lacking / ranks * is_cpu)
    need += memory.SNAPSHOT_BYTES * n - lacking
    if need > room:
        sizes = settings.model
        yield (
            f"model.hidden_size={sizes.hidden_size}, num_hidden_layers={sizes.num_hidden_layers}, "
            f"intermediate_size={sizes.intermediate_size} and max_position_embeddings="
            f"{sizes.max_position_embeddings} make {n:,} parameters and take {need / GB:,.1f} GB "
            f"or more of {_this_host(room)}; take smaller ones, of at most "
            f"{int(n * room / need):,} parameters"
        )


def _states(num_parameters: int, ranks: int, is_cpu: bool) -> float:
    """Bytes per rank of this host: the weights, which are drawn there, and on a CPU gradients and
    moments, at least a share of them."""
    return num_parameters * (4 + (12 / ranks if is_cpu else 0))


def _of_batch(
    settings: Settings, manifest: ShardsManifest, ranks: int, here: int, room: int
) -> Iterator[str]:
    """Global batches that the loader reads ahead."""
    train, optim = manifest.splits["train"], settings.optim
    length, masked = train.tokens / train.rows, train.masked_tokens / train.rows
    masked = max(masked, length * (settings.data.largest_mask_rate or 0))
    packed = PACKED_BYTES + TOKEN_BYTES * length + MASKED_BYTES * masked
    each = here * (SEQUENCE_BYTES + (BATCHES_AHEAD + 1) * packed / ranks)
    size, budget = optim.sequences_per_step(length), settings.engine.tokens_per_micro_batch
    if size * each > room:
        most = int(room / each)
        name, value, bound = "optim.global_batch", optim.global_batch, most
        if optim.tokens_per_step is not None:
            name, value, unit = "optim.tokens_per_step", optim.tokens_per_step, ranks * budget
            bound = int(most * length) // unit * unit
        yield (
            f"{name}={value} takes {size * each / GB:,.1f} GB or more of {_this_host(room)}, "
            f"because {BATCHES_AHEAD + 1} batches are held at a time; set {name}={bound} or less, "
            "or spread the ranks over more hosts"
        )


def _of_micro_batch(
    settings: Settings, manifest: ShardsManifest, ranks: int, here: int, room: int
) -> Iterator[str]:
    """States, and what a CPU keeps of a micro-batch of mean size for the backward pass."""
    train, engine = manifest.splits["train"], settings.engine
    length = train.tokens / train.rows
    steps = micro_steps(settings, manifest, ranks)
    tokens = settings.optim.sequences_per_step(length) * length / ranks / steps
    precision = Precision.fp32 if engine.precision is Precision.auto else engine.precision
    n = flops.parameters(settings.model, manifest.vocab_size, settings.data.pairs)
    kept = memory.activation_bytes(
        settings.model, precision, 1, int(length), True, engine.activation_checkpointing
    )
    kept += memory.logit_bytes(manifest.vocab_size, precision, 1)
    lacking = 4 * matrix_elements(settings.model, settings.optim.name)  # second moments
    states = _states(n, ranks, is_cpu=True) - lacking / ranks
    states += (memory.SNAPSHOT_BYTES * n - lacking) / here
    need = here * (states + SURE_SHARE * kept * tokens)
    if need > room:
        most = int((room / here - states) / (SURE_SHARE * kept))
        longest = settings.data.seq_len
        cure = f"set engine.tokens_per_micro_batch={most // longest * longest} or less"
        if most < longest:
            cure = "take a smaller model or data.seq_len"
        yield (
            f"engine.tokens_per_micro_batch={engine.tokens_per_micro_batch} makes micro-batches of "
            f"{tokens:,.0f} tokens, which take {need / GB:,.1f} GB or more of {_this_host(room)}; "
            f"{cure}"
        )


def _this_host(room: int) -> str:
    return f"this host's {room / GB:,.1f} GB of memory"
