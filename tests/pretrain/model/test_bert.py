"""The model against stock transformers, published parameter counts and its own invariants."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import hugging_face_config, padded, random_batch, random_model, small_settings
from torch import Tensor

from data_prep.core.config import compose
from data_prep.core.objectives import Pairing
from data_prep.stores.shards import Examples
from pretrain.config.load import load
from pretrain.config.settings import ModelSettings, PositionInit, Settings
from pretrain.data.packing import Shape, pack
from pretrain.huggingface.weights import from_hugging_face, hugging_face_class, to_hugging_face
from pretrain.model import cpu_attention, cpu_dropout
from pretrain.model.bert import BertForPreTraining, padded_vocab_size
from pretrain.model.cpu_dropout import draw_kept


def relative_difference(ours: Tensor, theirs: Tensor, floor: float = 1e-3) -> float:
    """Largest difference, in parts of the largest value (or of `floor`, where that is smaller)."""
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(floor)).item()


def hugging_face_twin(model: BertForPreTraining, attn_implementation: str = "sdpa"):
    """`transformers.BertForPreTraining` with the weights of `model`."""
    own = model.settings
    config = hugging_face_config(model.vocab_size, own, attn_implementation=attn_implementation)
    twin = getattr(transformers, hugging_face_class(model.pairing))(config)
    weights = to_hugging_face(dict(model.named_parameters()), own, model.vocab_size, model.pairing)
    rest = twin.load_state_dict(weights, strict=False)
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert set(rest.missing_keys) <= tied
    assert not rest.unexpected_keys
    return twin


@st.composite
def models_and_batches(draw: st.DrawFn):
    num_heads = draw(st.integers(1, 4))
    own = small_settings(
        hidden_size=num_heads * draw(st.sampled_from([8, 16])),
        num_attention_heads=num_heads,
        num_hidden_layers=draw(st.integers(1, 3)),
        intermediate_size=draw(st.integers(8, 96)),
        hidden_act=draw(st.sampled_from(["gelu", "gelu_new"])),
        pad_vocab_size_multiple_of=draw(st.sampled_from([1, 8, 64])),
    )
    vocab_size = draw(st.integers(30, 90))
    lengths = draw(st.lists(st.integers(1, 64), min_size=1, max_size=6))
    seed = draw(st.integers(0, 1_000))
    pairing = draw(st.sampled_from(Pairing))
    return random_model(own, vocab_size, seed, pairing), random_batch(lengths, vocab_size, seed)


# the same configurations in every run: the bound is at the edge of what fp32 can hold
@settings(max_examples=40)
@given(models_and_batches())
def test_logits_losses_and_every_gradient_equal_those_of_transformers(model_and_batch) -> None:
    model, batch = model_and_batch
    twin = hugging_face_twin(model)
    inputs = padded(batch)
    if model.pairing is Pairing.none:
        del inputs["next_sentence_label"]

    theirs = twin(**inputs)
    theirs.loss.backward()
    is_masked = inputs["labels"] != -100
    mlm_logits, pair_logits = model.logits(batch)
    mlm_sum, pair_sum, mlm_correct, pair_correct = model(batch)
    (mlm_sum / batch.num_masked + pair_sum / batch.num_sequences).backward()

    if model.pairing is Pairing.none:
        assert pair_logits is None
        assert pair_sum == pair_correct == 0
        ours = [(mlm_logits, theirs.logits[is_masked], batch.labels, mlm_sum, mlm_correct)]
    else:
        pairs = theirs.seq_relationship_logits, batch.next_sentence_labels
        ours = [
            (mlm_logits, theirs.prediction_logits[is_masked], batch.labels, mlm_sum, mlm_correct),
            (pair_logits, *pairs, pair_sum, pair_correct),
        ]
    for logits, their_logits, labels, loss, correct in ours:
        assert relative_difference(logits, their_logits) < 1e-5
        their_loss = F.cross_entropy(their_logits, labels, reduction="sum")
        assert relative_difference(loss, their_loss) < 1e-5
        assert correct == (their_logits.argmax(-1) == labels).sum()

    gradients = {name: p.grad for name, p in twin.named_parameters()}
    expected = from_hugging_face(gradients, model.settings, model.vocab_size, model.pairing)
    # sums of opposite terms may cancel to almost nothing, where fp32 has no five digits left
    floor = 0.01 * max(gradient.abs().max().item() for gradient in expected.values())
    for name, parameter in model.named_parameters():
        assert relative_difference(parameter.grad, expected[name], floor) < 1e-5, name


@settings(max_examples=10)
@given(models_and_batches(), st.booleans())
def test_a_trimmed_last_layer_gives_the_same_losses_and_gradients(model_and_batch, again) -> None:
    whole, batch = model_and_batch
    trimmed = copy.deepcopy(whole)
    trimmed.trim_last_layer, trimmed.activation_checkpointing = True, again
    sums = []
    for model in (whole, trimmed):
        mlm_loss, pair_loss, *correct = model(batch)
        (mlm_loss / batch.num_masked + pair_loss / batch.num_sequences).backward()
        sums.append(torch.stack([mlm_loss, pair_loss, *correct]))
    assert relative_difference(*sums) < 1e-5
    gradients = {name: p.grad for name, p in whole.named_parameters()}
    floor = 0.01 * max(gradient.abs().max().item() for gradient in gradients.values())
    for name, parameter in trimmed.named_parameters():
        assert relative_difference(parameter.grad, gradients[name], floor) < 1e-5, name


def test_a_trimmed_last_layer_computes_only_what_the_heads_read() -> None:
    model, batch = random_model(small_settings(), 50, seed=1), random_batch([20, 30], 50, seed=1)
    model.trim_last_layer = True
    rows = []
    for layer in model.layers:
        layer.feed_forward_in.register_forward_hook(lambda *call: rows.append(len(call[-1])))
    model(batch)
    assert rows == [50, batch.num_masked + batch.num_sequences]


def test_the_test_above_is_sharp_enough_to_see_the_other_gelu() -> None:
    model = random_model(small_settings(), 50, seed=1)
    batch = random_batch([20, 30], 50, seed=1)
    other = BertForPreTraining(small_settings(hidden_act="gelu_new"), 50, Pairing.nsp)
    other.load_weights(dict(model.named_parameters()))
    assert relative_difference(other.logits(batch)[0], model.logits(batch)[0]) > 1e-5


def published(size: str, multiple: int) -> ModelSettings:
    overrides = [f"+model={size}", f"model.pad_vocab_size_multiple_of={multiple}"]
    return compose("config", Settings, overrides)[0].model


@pytest.mark.parametrize(
    ("size", "multiple", "vocab_size", "embeddings", "layer", "without_heads", "pretraining"),
    [
        ("base", 1, 30_522, 23_837_184, 7_087_872, 109_482_240, 110_106_428),
        ("large", 1, 30_522, 31_782_912, 12_596_224, 335_141_888, 336_226_108),
        ("base", 8, 30_522, 23_841_792, 7_087_872, 109_486_848, 110_111_042),
        ("large", 8, 30_522, 31_789_056, 12_596_224, 335_148_032, 336_232_258),
        ("base", 1, 28_996, 22_665_216, 7_087_872, 108_310_272, 108_932_934),
        ("large", 1, 28_996, 30_220_288, 12_596_224, 333_579_264, 334_661_958),
    ],
)
def test_parameter_counts_are_the_published_ones_to_the_unit(
    size, multiple, vocab_size, embeddings, layer, without_heads, pretraining
) -> None:
    with torch.device("meta"):
        model = BertForPreTraining(published(size, multiple), vocab_size, Pairing.nsp)

    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(model.embeddings) == embeddings
    assert {count(module) for module in model.layers} == {layer}
    encoder = count(model.embeddings) + count(model.layers)
    assert encoder + count(model.pooler) == without_heads
    assert model.num_parameters == count(model) == pretraining


def test_every_matrix_is_drawn_from_the_truncated_normal_and_every_bias_is_zero() -> None:
    model = BertForPreTraining(
        small_settings(hidden_size=768, intermediate_size=1_024), 1_000, Pairing.nsp
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)  # whatever initialize leaves out is seen
    model.initialize(torch.Generator().manual_seed(3))
    truncated_std = 0.02 * 0.87962566  # of a normal cut at two standard deviations
    for name, parameter in model.named_parameters():
        if name == "embeddings.word.weight":
            assert (parameter[1_000:] == 0).all()
            parameter = parameter[:1_000]
        if parameter.ndim == 2:
            assert abs(parameter.std().item() / truncated_std - 1) < 0.05, name
            assert 0.036 < parameter.abs().max().item() <= 0.04, name
            assert abs(parameter.mean().item()) < 0.002, name
        else:
            is_scale = "norm" in name and name.endswith("weight")
            assert (parameter == (1.0 if is_scale else 0.0)).all(), name


@pytest.mark.parametrize(
    ("width", "std"), [(128, 0.04899), (256, 0.03464), (768, 0.02), (1024, 0.01732)]
)
def test_initializer_range_auto_is_that_of_base_by_the_root_of_the_width(width, std) -> None:
    typed = (f"model.hidden_size={width}", "model.initializer_range=auto")
    settings = load(["+model=base", *typed, "model.num_attention_heads=4"], 1)[0]
    assert settings.model.initializer_range == std


def test_sinusoidal_positions_have_the_spread_of_the_others_and_change_no_other_weight() -> None:
    drawn, waves = (
        BertForPreTraining(small_settings(hidden_size=128, position_init=way), 50, Pairing.nsp)
        for way in PositionInit
    )
    for model in (drawn, waves):
        model.initialize(torch.Generator().manual_seed(4))
    name = "embeddings.position.weight"
    different = {n for n, p in drawn.named_parameters() if not p.equal(waves.get_parameter(n))}
    assert different == {name}
    table = waves.get_parameter(name)
    assert table.square().mean().sqrt().item() == pytest.approx(0.02)
    angles = 5 / 10_000 ** (torch.arange(64) / 64)
    expected = 0.02 * math.sqrt(2) * torch.stack([angles.sin(), angles.cos()], -1).flatten()
    torch.testing.assert_close(table[5], expected, rtol=1e-5, atol=1e-7)


def test_padding_the_vocabulary_changes_neither_initial_weights_nor_logits() -> None:
    batch = random_batch([12, 7], 50, seed=0)
    logits = []
    for multiple in (1, 64):
        model = BertForPreTraining(
            small_settings(pad_vocab_size_multiple_of=multiple), 50, Pairing.nsp
        )
        model.initialize(torch.Generator().manual_seed(0))
        logits.append(model.logits(batch)[0])
    assert logits[0].shape == logits[1].shape == (3, 50)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-6)


def test_rows_that_pad_the_vocabulary_get_no_probability_and_no_gradient() -> None:
    model = random_model(small_settings(), 50, seed=2)
    with torch.no_grad():  # a model that would love the padded rows, were it asked
        model.mlm_head.decoder.bias[50:] = 1_000.0
    batch = random_batch([12, 30], 50, seed=2)
    in_softmax = torch.softmax(model._padded_logits(batch)[0], -1)
    assert in_softmax.shape[1] == padded_vocab_size(50, model.settings) == 64
    assert (in_softmax[:, 50:] == 0).all()

    mlm_loss, nsp_loss, _, _ = model(batch)
    (mlm_loss + nsp_loss).backward()
    assert mlm_loss.isfinite()
    assert (model.embeddings.word.weight.grad[50:] == 0).all()
    assert (model.mlm_head.decoder.bias.grad[50:] == 0).all()
    assert (model.mlm_head.decoder.bias.grad[:50] != 0).all()


def test_packed_sequences_have_the_logits_they_have_alone() -> None:
    model = random_model(small_settings(), 60, seed=4)
    lengths = [17, 1, 64, 5, 30]
    batch = random_batch(lengths, 60, seed=4)
    mlm_logits, nsp_logits = model.logits(batch)
    ends = batch.cu_seqlens.tolist()
    alone = []
    for i, n in enumerate(lengths):
        row = slice(ends[i], ends[i + 1])
        inside = (batch.masked_positions >= row.start) & (batch.masked_positions < row.stop)
        one = random_batch([n], 60, seed=0, masked=[int(inside.sum())])
        one.input_ids[:] = batch.input_ids[row]
        one.segment_ids[:] = batch.segment_ids[row]
        one.masked_positions[:] = batch.masked_positions[inside] - row.start
        alone.append(model.logits(one))
    expected = torch.cat([mlm for mlm, _ in alone])
    torch.testing.assert_close(mlm_logits, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        nsp_logits, torch.cat([nsp for _, nsp in alone]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_a_neighbour_holds_never_changes_an_output(dtype: torch.dtype) -> None:
    model = random_model(small_settings(), 60, seed=5).to(dtype)
    batch = random_batch([20, 33, 9], 60, seed=5, masked=[3, 3, 3])
    mlm_before, nsp_before = model.logits(batch)
    batch.input_ids[20:53] = batch.input_ids[20:53].flip(0)  # the middle sequence alone
    mlm_after, nsp_after = model.logits(batch)
    same_mlm, same_nsp = [0, 1, 2, 6, 7, 8], [0, 2]
    assert mlm_before.isfinite().all()
    assert torch.equal(mlm_before[same_mlm], mlm_after[same_mlm])
    assert torch.equal(nsp_before[same_nsp], nsp_after[same_nsp])
    assert not torch.equal(mlm_before[3:6], mlm_after[3:6])


def test_a_batch_without_a_masked_position_has_mlm_loss_zero_and_finite_gradients() -> None:
    model = random_model(small_settings(), 50, seed=6)
    mlm_loss, nsp_loss, mlm_correct, _ = model(random_batch([9, 4], 50, seed=6, masked=[0, 0]))
    assert mlm_loss.item() == 0
    assert mlm_correct.item() == 0
    (mlm_loss + nsp_loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_filler_changes_no_sum_and_no_gradient() -> None:
    """In fp64, up to the order of additions; with filler tokens, slots of length 0 and labels."""
    model = random_model(small_settings(), 60, seed=10).double()
    rng = np.random.default_rng(10)
    lengths = np.array([17, 3, 64, 30])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    examples = Examples(
        input_ids=rng.integers(1, 60, offsets[-1]), offsets=offsets,
        segment_a_lengths=(lengths // 2).astype(np.uint16),
        next_sentence_labels=np.array([0, 1, 1, 0], np.uint8),
        masked_positions=np.array([2, 9, 1, 0, 50, 7], np.uint16),
        masked_offsets=np.array([0, 2, 3, 5, 6]), masked_input_ids=rng.integers(1, 60, 6),
        document_a=np.zeros(4, np.uint32), document_b=np.zeros(4, np.uint32),
    )  # fmt: skip
    found = []
    for shape in (None, Shape(tokens=256, sequences=16, masked=16)):
        sums = model(pack(examples, 64, shape))
        model.zero_grad()
        (sums[0] + sums[1]).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        assert all(g is not None and g.isfinite().all() for g in gradients.values())
        found.append((sums, gradients))
    (bare, bare_gradients), (filled, filled_gradients) = found
    torch.testing.assert_close(filled[:2], bare[:2], rtol=1e-6, atol=0)  # losses are fp32
    assert filled[2:] == bare[2:]
    torch.testing.assert_close(filled_gradients, bare_gradients, rtol=1e-5, atol=1e-7)


LISTS = ("input_ids", "position_ids", "segment_ids", "labels", "next_sentence_labels")


def test_the_four_results_are_scalar_sums_in_a_plain_tuple() -> None:
    model = random_model(small_settings(), 50, seed=7)
    one, other = random_batch([9, 4], 50, seed=7), random_batch([30], 50, seed=8)
    both = [a + b for a, b in zip(model(one), model(other), strict=True)]
    assert type(model(one)) is tuple
    assert [x.shape for x in model(one)] == [()] * 4
    assert model(one)[0].dtype == model(one)[1].dtype == torch.float32

    joined = dataclasses.replace(
        one,
        lengths=[9, 4, 30],
        cls_positions=torch.tensor([0, 9, 13]),
        cu_seqlens=torch.tensor([0, 9, 13, 43], dtype=torch.int32),
        masked_positions=torch.cat([one.masked_positions, other.masked_positions + 13]),
        **{name: torch.cat([getattr(one, name), getattr(other, name)]) for name in LISTS},
    )
    for together, apart in zip(model(joined), both, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def test_dropout_is_at_the_places_of_the_paper_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    own = small_settings(hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.5)
    model = random_model(own, 50, seed=9).train()
    batch = random_batch([9, 4, 7], 50, seed=9)
    dropped: list[tuple[tuple[int, ...], float]] = []

    def record(like: Tensor, p: float) -> tuple[Tensor, float]:
        dropped.append((tuple(like.shape), p))
        return draw_kept(like, p)

    monkeypatch.setattr(cpu_dropout, "draw_kept", record)
    monkeypatch.setattr(cpu_attention, "draw_kept", record)
    model(batch)
    probabilities = [((4, length, length), 0.5) for length in (9, 4, 7)]
    hidden = ((20, 32), 0.25)
    assert dropped == [hidden, *(2 * [*probabilities, hidden, hidden])]

    dropped.clear()
    model.eval()
    assert torch.equal(model.logits(batch)[0], model.logits(batch)[0])
    assert dropped == []


def is_tied(model: BertForPreTraining) -> bool:
    word, decoder = model.embeddings.word.weight, model.mlm_head.decoder.weight
    return word is decoder and "mlm_head.decoder.weight" not in dict(model.named_parameters())


def test_the_decoder_stays_tied_through_load_state_dict_copy_cast_and_device_move() -> None:
    model = random_model(small_settings(), 50, seed=10)
    other = BertForPreTraining(small_settings(), 50, Pairing.nsp)
    other.load_weights(dict(model.named_parameters()))
    assert is_tied(other)
    assert torch.equal(other.embeddings.word.weight, model.embeddings.word.weight)
    third = BertForPreTraining(small_settings(), 50, Pairing.nsp)
    third.load_state_dict(model.state_dict(), strict=True)
    assert is_tied(third)
    assert torch.equal(third.mlm_head.decoder.weight, model.embeddings.word.weight)
    assert is_tied(copy.deepcopy(model))
    assert is_tied(copy.deepcopy(model).to(torch.bfloat16))
    if torch.cuda.is_available():
        assert is_tied(copy.deepcopy(model).to("cuda"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("pooler.weight"), "pooler.weight is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra is not known"),
        (
            lambda state: state.update({"embeddings.word.weight": torch.zeros(50, 32)}),
            r"embeddings.word.weight is \(50, 32\) instead of \(64, 32\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(change, message) -> None:
    model = random_model(small_settings(), 50, seed=11)
    state = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    change(state)
    before = model.pooler.bias.clone()
    with pytest.raises(ValueError, match=message):
        model.load_weights(state)
    assert torch.equal(model.pooler.bias, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["autocast", "cast"])
def test_half_precision_gives_fp32_losses_near_those_of_fp32(dtype: torch.dtype, way: str) -> None:
    model = random_model(small_settings(), 50, seed=12)
    batch = random_batch([33, 12, 20], 50, seed=12)
    expected = [x.item() for x in model(batch)[:2]]
    if way == "cast":
        model.to(dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=way == "autocast"):
        mlm_loss, nsp_loss, _, _ = model(batch)
    (mlm_loss + nsp_loss).backward()
    assert mlm_loss.dtype == nsp_loss.dtype == torch.float32
    assert [mlm_loss.item(), nsp_loss.item()] == pytest.approx(expected, rel=0.05)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
