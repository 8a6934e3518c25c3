"""Checks of the settings and of their combinations, each with its cure, before anything is loaded.

Neither Hydra nor torch is imported: a wrong setting is refused within a second.
"""

from __future__ import annotations

from data_prep.core.config import SettingsError, limit_faults
from data_prep.core.objectives import Pairing
from data_prep.core.settings import holds_key, is_url
from pretrain.config.hub_access import name_fault
from pretrain.config.limits import CLUSTER_LIMITS, LIMITS, MOST
from pretrain.config.settings import (
    EVERY_RANK,
    MUON_SETTINGS,
    Compile,
    DataSettings,
    MaskMode,
    OnSpike,
    OptimizerName,
    OptimSettings,
    Precision,
    ProfileSettings,
    ScheduleSettings,
    Settings,
    Shard,
    TrustRatio,
)


def check(settings: Settings, world_size: int) -> None:
    """Raise SettingsError, listing every reason, if a run on `world_size` ranks cannot work."""
    wrong = limit_faults(settings, LIMITS)
    if settings.run.name is not None and not _is_folder_name(settings.run.name):
        wrong.append(
            f"run.name={settings.run.name!r} must be the name of one folder (run.dir is its parent)"
        )
    wrong += _check_urls(settings)
    # What follows compares values that are possible alone
    wrong = wrong or [
        *_check_model(settings), *_check_mixture(settings.data), *_check_mask_rate(settings),
        *_check_schedule(settings.schedule),
        *_check_optimizer(settings.optim), *_check_engine(settings), *_check_survival(settings),
        *_check_profile(settings.profile, world_size), *_check_push(settings),
        *_check_cluster(settings), *_check_total(settings), *_check_dealable(settings, world_size),
    ]  # fmt: skip
    if wrong:
        raise SettingsError("\n".join(wrong))


def _is_folder_name(name: str) -> bool:
    return name.isprintable() and bool(name) and "/" not in name and not name.startswith(".")


def _check_urls(settings: Settings) -> list[str]:
    """URLs with keys, of the wrong kind, and in place of folders. No key is repeated."""
    mirror = settings.checkpoint.mirror
    urls = {"data.dir": settings.data.dir, "checkpoint.mirror": mirror or ""}
    folders = {"run.dir": settings.run.dir, "data.stage": settings.data.stage or ""}
    wrong = [
        f"{name}={url.partition('://')[0]}://...: holds a key, which logs and the run folder would "
        "keep; leave it out, and set it in the environment (AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, HF_TOKEN) or in ~/.aws/credentials"
        for name, url in (urls | folders).items()
        if is_url(url) and holds_key(url)
    ]
    if wrong:
        return wrong
    if mirror is not None and (not is_url(mirror) or mirror.lower().startswith("http")):
        wrong.append(
            f"checkpoint.mirror={mirror}: it takes a URL that can be written, as in "
            "s3://bucket/mirror or file:///mnt/disk/mirror; or set checkpoint.mirror=null"
        )
    cures = {"run.dir": "checkpoint.mirror=", "data.stage": "data.dir="}
    return wrong + [
        f"{name}={folder}: it takes a local folder; a URL is for {cures[name]}"
        for name, folder in folders.items()
        if is_url(folder)
    ]


def _check_model(settings: Settings) -> list[str]:
    wrong = []
    model, data = settings.model, settings.data
    heads = model.num_attention_heads
    if model.hidden_size % heads:
        near = [h for h in range(1, model.hidden_size + 1) if model.hidden_size % h == 0]
        best = min(near, key=lambda h: abs(h - heads))
        wrong.append(
            f"model.hidden_size={model.hidden_size} is not a multiple of "
            f"model.num_attention_heads={heads}; set model.num_attention_heads={best}"
        )
    if data.seq_len > model.max_position_embeddings:
        wrong.append(
            f"data.seq_len={data.seq_len} is longer than model.max_position_embeddings="
            f"{model.max_position_embeddings}; set model.max_position_embeddings={data.seq_len}, "
            "or build and set a shorter data.seq_len"
        )
    segments = 1 if data.pairs is Pairing.none else 2
    if model.type_vocab_size < segments:
        wrong.append(
            f"model.type_vocab_size={model.type_vocab_size}, but data.pairs={data.pairs.name} has "
            f"two segments; set model.type_vocab_size={segments}"
        )
    return wrong


def _check_mixture(data: DataSettings) -> list[str]:
    if data.mixture is None or data.mixture_temperature is None:
        return []
    return [
        f"data.mixture={data.mixture} and data.mixture_temperature={data.mixture_temperature:g} "
        "both set the shares of the sources; set one of them to null"
    ]


def _check_mask_rate(settings: Settings) -> list[str]:
    data = settings.data
    if data.largest_mask_rate is None:
        return []
    if data.mask_rate is None:
        return [
            f"data.mask_rate_end={data.mask_rate_end} is the end of a line without a start; set "
            "data.mask_rate=0.3, or data.mask_rate_end=null"
        ]
    wrong = []
    if data.masking is MaskMode.static:
        wrong.append(
            f"data.mask_rate={data.mask_rate} with data.masking=static: those masks are stored in "
            "the shards; set data.masking=dynamic, or data.mask_rate=null and "
            "data.mask_rate_end=null"
        )
    if data.mask_rate_end is not None and settings.schedule.budget_hours is not None:
        wrong.append(
            f"data.mask_rate_end={data.mask_rate_end} is reached at schedule.total_steps, but "
            "schedule.budget_hours counts time; set data.mask_rate_end=null"
        )
    return wrong


def _check_schedule(schedule: ScheduleSettings) -> list[str]:
    wrong = []
    if schedule.decay_fraction is not None and schedule.warmup + schedule.decay > schedule.total:
        unit = "steps" if schedule.budget_hours is None else "seconds"
        wrong.append(
            f"a warm-up of {schedule.warmup:g} {unit} and schedule.decay_fraction="
            f"{schedule.decay_fraction} ({schedule.decay:g}) are more than all {schedule.total:g}; "
            "set schedule.warmup_steps=null, schedule.warmup_fraction=0.1 and "
            "schedule.decay_fraction=0.2"
        )
    if schedule.budget_hours is None:
        stop = schedule.total_steps if schedule.stop_step is None else schedule.stop_step
        if not schedule.start_step < stop <= schedule.total_steps:
            wrong.append(
                f"schedule.start_step={schedule.start_step} and schedule.stop_step={stop} must be "
                f"steps from 0 to schedule.total_steps={schedule.total_steps}, the first before "
                "the second; for the whole curve set schedule.start_step=0 and "
                "schedule.stop_step=null"
            )
        if schedule.warmup >= schedule.total_steps:
            wrong.append(
                f"a warm-up of {schedule.warmup:g} steps must be shorter than "
                f"schedule.total_steps={schedule.total_steps}; set "
                f"schedule.warmup_steps={schedule.total_steps // 10}"
            )
        return wrong
    if schedule.start_step or schedule.stop_step is not None:
        wrong.append(
            "schedule.start_step and stop_step count steps, but schedule.budget_hours counts time; "
            "set schedule.start_step=0 and schedule.stop_step=null"
        )
    if schedule.warmup_steps is not None:
        wrong.append(
            f"schedule.warmup_steps={schedule.warmup_steps} counts steps, but "
            "schedule.budget_hours counts time; set schedule.warmup_steps=null and "
            "schedule.warmup_fraction=0.1"
        )
    return wrong


def _check_total(settings: Settings) -> list[str]:
    steps, batch = settings.schedule.total_steps, settings.optim.global_batch
    if steps * batch <= MOST:
        return []
    return [
        f"schedule.total_steps={steps} of optim.global_batch={batch} are more than {MOST} "
        f"sequences; set schedule.total_steps={max(1, MOST // batch)} or less"
    ]


def _check_optimizer(optim: OptimSettings) -> list[str]:
    """The optimizer's name must agree with its options."""
    name, ratio = optim.name.name, optim.trust_ratio
    wrong = _check_muon(optim)
    if optim.name is OptimizerName.plugin:
        return wrong if optim.plugin else [*wrong, "optim=own needs a name; add optim.plugin=NAME"]
    if optim.plugin is not None or optim.options is not None:
        wrong.append(
            f"optim.plugin and optim.options are not {name}'s; set optim=own, or leave them out"
        )
    if optim.name is OptimizerName.lamb:
        if ratio is TrustRatio.none:
            return [*wrong, "optim.trust_ratio=none with optim=lamb is Adam; set optim=adamw"]
        if ratio is TrustRatio.decayed and optim.weight_decay == 0:
            return [
                *wrong,
                "optim.trust_ratio=decayed with optim.weight_decay=0 scales no tensor; set "
                "optim.trust_ratio=all",
            ]
        return wrong
    if ratio is not TrustRatio.none or not optim.grad_averaging:
        wrong.append(
            f"optim.trust_ratio={ratio.name} and optim.grad_averaging="
            f"{str(optim.grad_averaging).lower()} are not {name}'s; set optim.trust_ratio=none "
            "and optim.grad_averaging=true, or optim=lamb"
        )
    if optim.bias_correction != (optim.name is not OptimizerName.bert_adam):
        other = "adamw" if optim.bias_correction else "bert_adam"
        wrong.append(
            f"optim.bias_correction={str(optim.bias_correction).lower()} is not {name}'s; set "
            f"optim={other} or "
            f"optim.bias_correction={str(not optim.bias_correction).lower()}"
        )
    return wrong


def _check_muon(optim: OptimSettings) -> list[str]:
    """Muon's own settings have values, and those of other optimizers none."""
    if optim.name is OptimizerName.muon:
        missing = [f"optim.{name}" for name in MUON_SETTINGS if getattr(optim, name) is None]
        names = " and ".join(missing)
        return [f"{names} must have a value with optim=muon; leave null out"] * bool(missing)
    given = {f"optim.{n}": "null" for n in MUON_SETTINGS if getattr(optim, n) is not None}
    if optim.equal_rows:
        given["optim.equal_rows"] = "false"
    cure = " ".join(f"{name}={value}" for name, value in given.items())
    names = " and ".join(given)
    return [f"only optim=muon has {names}; set optim=muon, or {cure}"] * bool(given)


def _check_engine(settings: Settings) -> list[str]:
    engine = settings.engine
    if engine.fp8 and engine.precision in (Precision.fp32, Precision.fp16):
        return [
            f"engine.fp8=true with engine.precision={engine.precision.name}: all else is then in "
            "bfloat16; set engine.precision=bf16, or engine.fp8=false"
        ]
    if engine.fp8 and engine.zero_stage not in (1, 2):
        return [
            f"engine.fp8=true with engine.zero_stage={engine.zero_stage}: it reads copies of the "
            "weights in bfloat16, which ZeRO 1 and 2 have; set engine.zero_stage=1 or "
            "engine.fp8=false"
        ]
    if engine.zero_stage == 0 and engine.precision in (Precision.bf16, Precision.fp16):
        return [
            f"engine.precision={engine.precision.name} with engine.zero_stage=0: DeepSpeed's "
            "optimizer for that pair makes a step on zero gradients at the start and scales "
            "wrongly; on one rank, too, set engine.zero_stage=1 or engine.precision=bf16_autocast"
        ]
    if engine.shard is Shard.node and engine.zero_stage in (0, 3):
        why = "shards nothing" if engine.zero_stage == 0 else "gathers weights among all ranks"
        return [
            f"engine.shard=node with engine.zero_stage={engine.zero_stage}, which {why}; set "
            "engine.zero_stage=1 or 2, or engine.shard=world"
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
    if every is not None and (every < 1 or every % settings.checkpoint.every_steps):
        return [
            f"checkpoint.keep_every={every} is not a multiple of checkpoint.every_steps="
            f"{settings.checkpoint.every_steps}, so that few of its steps or none have a "
            f"checkpoint; set checkpoint.keep_every={10 * settings.checkpoint.every_steps} or "
            "checkpoint.keep_every=null"
        ]
    saves, records = settings.checkpoint.every_steps, settings.monitor.every_steps
    if settings.survival.on_spike is OnSpike.rewind and saves % records:
        return [
            "survival.on_spike=rewind looks for spikes once per "
            f"monitor.every_steps={records} steps, but checkpoint.every_steps={saves} is not a "
            "multiple of it, so that a checkpoint could hold half of a spike; "
            f"set checkpoint.every_steps={max(1, saves // records) * records}"
        ]
    return []


def _check_profile(profile: ProfileSettings, world_size: int) -> list[str]:
    if profile.steps is None or profile.ranks == EVERY_RANK or max(profile.ranks) < world_size:
        return []
    return [
        f"profile.ranks={profile.ranks}, but the {world_size} rank(s) of this run are numbered "
        f"from 0 to {world_size - 1}; set profile.ranks=[0] or profile.ranks=all"
    ]


def _check_push(settings: Settings) -> list[str]:
    name = settings.export.push_to
    fault = None if name is None else name_fault(name)
    return [f"export.push_to={name}: {fault}; or set export.push_to=null"] if fault else []


def _check_cluster(settings: Settings) -> list[str]:
    cluster = settings.cluster
    if cluster.gpu is None:
        return []
    wrong = limit_faults(settings, CLUSTER_LIMITS)
    needed = {"fp32", "half"} | {kind for kind, peak in cluster.peak_tflops.items() if peak}
    for name in ("peak_tflops", "gemm_share"):
        values = getattr(cluster, name)
        if missing := sorted(needed - values.keys()):
            wrong.append(
                f"cluster.{name}={values} has no value for {' and '.join(missing)}; give all, 0 "
                "where there is none"
            )
        elif min(values.values()) < 0:
            wrong.append(f"cluster.{name}={values}; it takes numbers of 0 or more")
    is_measured = not any(cluster.peak_tflops.values())
    if not is_measured and (cluster.bandwidth_gb_s <= 0 or not cluster.peak_tflops.get("fp32")):
        wrong.append(
            f"cluster.bandwidth_gb_s={cluster.bandwidth_gb_s} and the fp32 of cluster.peak_tflops="
            f"{cluster.peak_tflops} must be more than 0"
        )
    return wrong


def _check_dealable(settings: Settings, world_size: int) -> list[str]:
    try:
        check_dealable(
            settings.optim.global_batch,
            world_size,
            settings.engine.tokens_per_micro_batch,
            settings.data.seq_len,
            settings.optim.tokens_per_step,
        )
    except SettingsError as error:
        return [str(error)]
    return []


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
                f"fewer micro-batches than others; set optim.tokens_per_step={nearest}, or "
                "optim.tokens_per_step=null for optim.global_batch sequences"
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
