"""Checks of the settings and of their combinations, each with its cure, before anything is loaded.

Neither Hydra nor torch is imported: a wrong setting is refused within a second.
"""

from __future__ import annotations

from data_prep.core.config import SettingsError
from data_prep.core.objectives import Pairing
from pretrain.config.settings import (
    Compile,
    OnSpike,
    OptimizerName,
    OptimSettings,
    Precision,
    ScheduleSettings,
    Settings,
    TrustRatio,
)


def check(settings: Settings, world_size: int) -> None:
    """Raise SettingsError, listing every reason, if a run on `world_size` ranks cannot work."""
    wrong = [
        *_check_model(settings), *_check_numbers(settings), *_check_optimizer(settings.optim),
        *_check_engine(settings), *_check_survival(settings),
    ]  # fmt: skip
    try:
        check_dealable(
            settings.optim.global_batch,
            world_size,
            settings.engine.tokens_per_micro_batch,
            settings.data.seq_len,
            settings.optim.tokens_per_step,
        )
    except SettingsError as error:
        wrong.append(str(error))
    if wrong:
        raise SettingsError("\n".join(wrong))


def _check_model(settings: Settings) -> list[str]:
    wrong = []
    model, data = settings.model, settings.data
    heads = model.num_attention_heads
    if heads < 1 or model.hidden_size % heads:
        near = [h for h in range(1, model.hidden_size + 1) if model.hidden_size % h == 0]
        best = min(near, key=lambda h: abs(h - heads))
        wrong.append(
            f"model.hidden_size={model.hidden_size} is not a multiple of "
            f"model.num_attention_heads={heads}; set model.num_attention_heads={best}"
        )
    if model.hidden_act not in ("gelu", "gelu_new"):
        wrong.append(f"model.hidden_act={model.hidden_act}; it takes gelu or gelu_new")
    if data.seq_len > model.max_position_embeddings:
        wrong.append(
            f"data.seq_len={data.seq_len} is longer than model.max_position_embeddings="
            f"{model.max_position_embeddings}; set one of them so that it fits"
        )
    segments = 1 if data.pairs is Pairing.none else 2
    if model.type_vocab_size < segments:
        wrong.append(
            f"model.type_vocab_size={model.type_vocab_size}; data.pairs={data.pairs.name} needs "
            f"{segments} or more"
        )
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if not 0 <= getattr(model, name) < 1:
            wrong.append(f"model.{name}={getattr(model, name)} is outside [0, 1)")
    return wrong


def _check_numbers(settings: Settings) -> list[str]:
    wrong = []
    at_least_one = (
        "model.hidden_size", "model.num_hidden_layers", "model.intermediate_size",
        "model.pad_vocab_size_multiple_of", "data.seq_len", "optim.global_batch",
        "schedule.total_steps", "engine.tokens_per_micro_batch", "eval.every_steps",
        "checkpoint.every_steps", "checkpoint.keep", "monitor.every_steps",
        "survival.max_skipped_steps", "survival.min_loss_scale", "survival.spike_window",
        "survival.max_rewinds",
    )  # fmt: skip
    for key in at_least_one:
        if (value := _value(settings, key)) < 1:
            wrong.append(f"{key}={value}; it must be 1 or more")
    positive = (
        "optim.learning_rate", "optim.eps", "engine.timeout_minutes", "survival.spike_spreads",
        "log.timeout_s",
    )  # fmt: skip
    for key in positive:
        if (value := _value(settings, key)) <= 0:
            wrong.append(f"{key}={value}; it must be above 0")
    if settings.run.stop_after is not None and settings.run.stop_after < 1:
        wrong.append(
            f"run.stop_after={settings.run.stop_after}; it must be 1 or more, or null for no limit"
        )
    if settings.eval.max_examples is not None and settings.eval.max_examples < 1:
        wrong.append(
            f"eval.max_examples={settings.eval.max_examples}; it must be 1 or more, or null for all"
        )
    if settings.monitor.peak_tflops is not None and settings.monitor.peak_tflops <= 0:
        wrong.append(
            f"monitor.peak_tflops={settings.monitor.peak_tflops}; it must be above 0, "
            "or null for the known peak of the device"
        )
    if settings.optim.max_grad_norm is not None and settings.optim.max_grad_norm <= 0:
        wrong.append(
            f"optim.max_grad_norm={settings.optim.max_grad_norm}; it must be above 0, or null for "
            "no clipping"
        )
    if len(settings.optim.betas) != 2 or not all(0 <= b < 1 for b in settings.optim.betas):
        wrong.append(f"optim.betas={settings.optim.betas}; it takes two numbers in [0, 1)")
    if not 0 <= settings.run.seed < 2**32:
        wrong.append(f"run.seed={settings.run.seed}; it takes 0 to {2**32 - 1}")
    wrong += _check_schedule(settings.schedule)
    name = settings.run.name
    if name is not None and (
        not name.isprintable() or not name or "/" in name or name.startswith(".")
    ):
        wrong.append(f"run.name={name!r} must be the name of one folder (run.dir is its parent)")
    return wrong


def _check_schedule(schedule: ScheduleSettings) -> list[str]:
    wrong = []
    if schedule.power < 0:
        wrong.append(f"schedule.power={schedule.power}; it must be 0 (constant) or more")
    if schedule.budget_hours is None:
        stop = schedule.total_steps if schedule.stop_step is None else schedule.stop_step
        if not 0 <= schedule.start_step < stop <= max(1, schedule.total_steps):
            wrong.append(
                f"schedule.start_step={schedule.start_step} and schedule.stop_step={stop} must be "
                f"steps from 0 to schedule.total_steps={schedule.total_steps}, the first before "
                "the second; set 0 and null for the whole curve"
            )
        if not 0 <= schedule.warmup < max(1, schedule.total_steps):
            wrong.append(
                f"a warm-up of {schedule.warmup:g} steps must be shorter than "
                f"schedule.total_steps={schedule.total_steps}; set "
                f"schedule.warmup_steps={schedule.total_steps // 10}"
            )
        return wrong
    if schedule.budget_hours <= 0:
        wrong.append(
            f"schedule.budget_hours={schedule.budget_hours}; it must be above 0, or null for "
            "schedule.total_steps"
        )
    if schedule.start_step or schedule.stop_step is not None:
        wrong.append(
            "schedule.start_step and stop_step count steps, but schedule.budget_hours counts time; "
            "set 0 and null"
        )
    if schedule.warmup_steps is not None:
        wrong.append(
            f"schedule.warmup_steps={schedule.warmup_steps} counts steps, but "
            "schedule.budget_hours counts time; set schedule.warmup_steps=null and "
            "schedule.warmup_fraction"
        )
    elif not 0 <= schedule.warmup_fraction < 1:
        wrong.append(f"schedule.warmup_fraction={schedule.warmup_fraction} is outside [0, 1)")
    return wrong


def _check_optimizer(optim: OptimSettings) -> list[str]:
    """The optimizer's name must agree with its options."""
    name, ratio = optim.name.name, optim.trust_ratio
    if optim.name is OptimizerName.lamb:
        if ratio is TrustRatio.none:
            return ["optim.trust_ratio=none with optim=lamb is Adam; set optim=adamw"]
        if ratio is TrustRatio.decayed and optim.weight_decay == 0:
            return [
                "optim.trust_ratio=decayed with optim.weight_decay=0 scales no tensor; set "
                "optim.trust_ratio=all"
            ]
        return []
    wrong = []
    if ratio is not TrustRatio.none or not optim.grad_averaging:
        wrong.append(
            f"optim.trust_ratio={ratio.name} and optim.grad_averaging={optim.grad_averaging} are "
            f"not {name}'s; set optim=lamb, or trust_ratio=none and grad_averaging=true"
        )
    if optim.bias_correction != (optim.name is OptimizerName.adamw):
        wrong.append(
            f"optim.bias_correction={optim.bias_correction} is not {name}'s; set optim=adamw for "
            "Adam with it and optim=bert_adam for Adam without"
        )
    return wrong


def _check_engine(settings: Settings) -> list[str]:
    engine = settings.engine
    if engine.zero_stage not in (0, 1, 2, 3):
        return [f"engine.zero_stage={engine.zero_stage}; it takes 0, 1, 2 or 3"]
    if engine.zero_stage == 0 and engine.precision in (Precision.bf16, Precision.fp16):
        return [
            f"engine.precision={engine.precision.name} with engine.zero_stage=0: DeepSpeed's "
            "optimizer for that pair makes a step on zero gradients at the start and scales "
            "wrongly; set engine.zero_stage=1 (one rank, too) or engine.precision=bf16_autocast"
        ]
    if engine.zero_stage == 3 and engine.compile is Compile.true:
        return [
            "engine.compile=true with engine.zero_stage=3: its hooks, which gather a layer's "
            "weights before it runs, cannot be compiled; set engine.zero_stage=2 or "
            "engine.compile=false"
        ]
    return []


def _check_survival(settings: Settings) -> list[str]:
    every = settings.checkpoint.keep_every
    if every is not None and (every < 1 or every % max(1, settings.checkpoint.every_steps)):
        return [
            f"checkpoint.keep_every={every} is not a multiple of checkpoint.every_steps="
            f"{settings.checkpoint.every_steps}, so that few of its steps or none have a "
            f"checkpoint; set checkpoint.keep_every={10 * settings.checkpoint.every_steps}, or null"
        ]
    saves, records = settings.checkpoint.every_steps, settings.monitor.every_steps
    if settings.survival.on_spike is OnSpike.rewind and records >= 1 and saves % records:
        return [
            "survival.on_spike=rewind looks for spikes once per "
            f"monitor.every_steps={records} steps, but checkpoint.every_steps={saves} is not a "
            "multiple of it, so that a checkpoint could hold half of a spike; "
            f"set checkpoint.every_steps={max(1, saves // records) * records}"
        ]
    return []


def _value(settings: Settings, key: str) -> float:
    group, name = key.split(".")
    value = getattr(getattr(settings, group), name)
    assert isinstance(value, int | float)
    return value


def check_dealable(
    global_batch: int,
    num_ranks: int,
    token_budget: int,
    seq_len: int,
    tokens_per_step: int | None = None,
) -> None:
    """Raise SettingsError if a batch could leave a rank with an empty micro-batch.

    Below a budget of 2 x seq_len, one sequence of full length fills a micro-batch. A step then
    takes `global_batch` micro-batches, and they must divide by the ranks. `tokens_per_step` fixes
    the number of micro-batches, and it too must divide by the ranks.
    """
    if token_budget < seq_len:
        raise SettingsError(
            f"engine.tokens_per_micro_batch={token_budget} cannot hold one sequence of "
            f"data.seq_len={seq_len} tokens; set engine.tokens_per_micro_batch={seq_len} or more"
        )
    if tokens_per_step is not None:
        of_all = num_ranks * token_budget
        if tokens_per_step < 1 or tokens_per_step % of_all:
            nearest = max(1, round(tokens_per_step / of_all)) * of_all
            raise SettingsError(
                f"optim.tokens_per_step={tokens_per_step} is not a multiple of {num_ranks} rank(s) "
                f"x engine.tokens_per_micro_batch={token_budget}, so that some ranks would have "
                f"fewer micro-batches than others; set optim.tokens_per_step={nearest}, or null "
                "for optim.global_batch sequences"
            )
        return
    if global_batch < num_ranks:
        raise SettingsError(
            f"optim.global_batch={global_batch} sequences cannot be dealt to {num_ranks} ranks, "
            f"each of which needs at least one; set optim.global_batch={num_ranks} or more"
        )
    if global_batch % num_ranks and token_budget < 2 * seq_len:
        raise SettingsError(
            f"optim.global_batch={global_batch} is not a multiple of {num_ranks} ranks, and "
            f"engine.tokens_per_micro_batch={token_budget} may hold one sequence of data.seq_len="
            f"{seq_len} tokens only, so that a rank could be left without one; set "
            f"engine.tokens_per_micro_batch={2 * seq_len} or "
            f"optim.global_batch={global_batch - global_batch % num_ranks}"
        )
