"""BERT for pretraining over packed rows: no padding from the embeddings to the heads.

The arithmetic is that of Devlin et al. 2018 as released in google-research/bert (modeling.py) and
kept by `transformers.BertForPreTraining`: post-LayerNorm layers; dropout on the embeddings, on the
attention probabilities and on both sublayer outputs; the output matrix tied to the word embedding.
Two differences change no number: sequences are packed end to end in one row, and the MLM head runs
only at masked positions.

Every parameter is used only in the `forward` of the module that holds it, so that engines which
gather a module's parameters just before it runs (ZeRO stage 3) work unchanged.

Shapes: T tokens of the packed row, N sequences, M masked positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_prep.core.config import SettingsError
from data_prep.core.objectives import Pairing
from pretrain.config.settings import ModelSettings, PositionInit
from pretrain.data.packing import IGNORED, PackedBatch
from pretrain.model import attention
from pretrain.model.cpu_dropout import Dropout

# Hugging Face's name: torch's `approximate`
_GELU_FORM = {"gelu": "none", "gelu_new": "tanh"}


def padded_vocab_size(vocab_size: int, settings: ModelSettings) -> int:
    """Rows of the word embedding: `vocab_size` rounded up to pad_vocab_size_multiple_of."""
    multiple = settings.pad_vocab_size_multiple_of
    return -(-vocab_size // multiple) * multiple


class Embeddings(nn.Module):
    """Word + learned position + segment embedding, LayerNorm, dropout (section 3, figure 2)."""

    def __init__(self, settings: ModelSettings, vocab_size: int) -> None:
        super().__init__()
        hidden = settings.hidden_size
        self.word = nn.Embedding(padded_vocab_size(vocab_size, settings), hidden)
        self.position = nn.Embedding(settings.max_position_embeddings, hidden)
        self.segment = nn.Embedding(settings.type_vocab_size, hidden)
        self.norm = nn.LayerNorm(hidden, eps=settings.layer_norm_eps)
        self.dropout = Dropout(settings.hidden_dropout_prob)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Vectors of all tokens, (T, D)."""
        summed = self.word(batch.input_ids) + self.segment(batch.segment_ids)
        return self.dropout(self.norm(summed + self.position(batch.position_ids)))


class Layer(nn.Module):
    """One Transformer layer: LayerNorm(x + dropout(sublayer(x))), twice."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        hidden, eps = settings.hidden_size, settings.layer_norm_eps
        self.num_heads = settings.num_attention_heads
        self.attention_dropout_prob = settings.attention_probs_dropout_prob
        self.gelu_form = _GELU_FORM[settings.hidden_act]
        self.qkv = nn.Linear(hidden, 3 * hidden)  # queries, keys, values stacked
        self.attention_out = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=eps)
        self.feed_forward_in = nn.Linear(hidden, settings.intermediate_size)
        self.feed_forward_out = nn.Linear(settings.intermediate_size, hidden)
        self.feed_forward_norm = nn.LayerNorm(hidden, eps=eps)
        self.dropout = Dropout(settings.hidden_dropout_prob)

    def forward(
        self, x: Tensor, batch: PackedBatch, kernel: attention.Kernel, rows: Tensor | None = None
    ) -> Tensor:
        """(T, D) to (T, D), or to (R, D) with `rows`, (R,), the positions to compute.

        `kernel` as in `attention`.
        """
        qkv = self.qkv(x).view(x.shape[0], 3, self.num_heads, -1)
        dropout_p = self.attention_dropout_prob if self.training else 0.0
        attended = attention.attention(qkv, batch, dropout_p, kernel)
        if rows is not None:  # every position has been attended to
            x, attended = x[rows], attended[rows]
        x = self.attention_norm(x + self.dropout(self.attention_out(attended)))
        inner = F.gelu(self.feed_forward_in(x), approximate=self.gelu_form)
        return self.feed_forward_norm(x + self.dropout(self.feed_forward_out(inner)))


class Decoder(nn.Module):
    """Logits over the vocabulary, through the word embedding's own matrix.

    Rows that only pad the vocabulary get the logit -inf from the bias: probability 0 in the softmax
    and a gradient of exactly 0.
    """

    def __init__(self, tied: Tensor, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        assert isinstance(tied, nn.Parameter), "otherwise the matrix would not be registered here"
        self.weight = tied
        self.bias = nn.Parameter(torch.zeros(tied.shape[0], device=tied.device))

    def forward(self, x: Tensor) -> Tensor:
        """(M, D) to (M, padded V)."""
        num_padded = self.weight.shape[0] - self.vocab_size
        bias = F.pad(self.bias[: self.vocab_size], (0, num_padded), value=float("-inf"))
        return F.linear(x, self.weight, bias)


class MaskedTokenHead(nn.Module):
    """Dense, GELU, LayerNorm, tied decoder (section 3.1, task 1)."""

    def __init__(self, settings: ModelSettings, tied: Tensor, vocab_size: int) -> None:
        super().__init__()
        self.gelu_form = _GELU_FORM[settings.hidden_act]
        self.transform = nn.Linear(settings.hidden_size, settings.hidden_size)
        self.norm = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_eps)
        self.decoder = Decoder(tied, vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """Vectors at masked positions, (M, D), to logits, (M, padded V)."""
        transformed = F.gelu(self.transform(x), approximate=self.gelu_form)
        return self.decoder(self.norm(transformed))


class BertForPreTraining(nn.Module):
    """BERT with its pretraining heads: MLM, and pairs unless `pairing` is none.

    The pair head is the same for both kinds (`Pairing`): two classes, 1 for random or swapped.
    Without pairs there is neither this head nor the pooler: every parameter has a gradient.
    `vocab_size` counts the tokenizer's entries; the rows that pad it are never visible outside.
    The constructor leaves torch's weights: call `initialize` or `load_weights`.
    """

    def __init__(self, settings: ModelSettings, vocab_size: int, pairing: Pairing) -> None:
        super().__init__()
        self.settings = settings
        self.vocab_size = vocab_size
        self.pairing = pairing
        self.activation_checkpointing = False  # set by the engine, as is the next
        self.trim_last_layer = False  # it computes only what the heads read
        self.embeddings = Embeddings(settings, vocab_size)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.num_hidden_layers))
        if pairing is not Pairing.none:
            self.pooler = nn.Linear(settings.hidden_size, settings.hidden_size)
            self.pair_head = nn.Linear(settings.hidden_size, 2)
        self.mlm_head = MaskedTokenHead(settings, self.embeddings.word.weight, vocab_size)
        self.token_sums = _sums  # the engine may compile it
        self.num_parameters = sum(p.numel() for p in self.parameters())  # the tied matrix once

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """MLM loss, pair loss (fp32), and right guesses of both (int64), summed over the
        micro-batch.

        The caller divides by the counts of the global batch. The sums of pairs are 0 without pairs.
        Without a masked position the MLM loss is 0, with a zero gradient for every parameter.
        """
        mlm_logits, pair_logits = self._padded_logits(batch)
        mlm_loss, mlm_correct = self.token_sums(mlm_logits, batch.labels)
        if pair_logits is None:
            return mlm_loss, mlm_loss.new_zeros(()), mlm_correct, mlm_correct.new_zeros(())
        pair_loss, pair_correct = _sums(pair_logits, batch.next_sentence_labels)
        return mlm_loss, pair_loss, mlm_correct, pair_correct

    def logits(self, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
        """Logits at the masked positions, (M, V) without padded rows, and of the pairs, (N, 2)."""
        mlm_logits, pair_logits = self._padded_logits(batch)
        return mlm_logits[:, : self.vocab_size], pair_logits

    def _padded_logits(self, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
        x = self.embeddings(batch)
        # a recomputed layer keeps only its input and runs again in the backward pass, with the same
        # generator states, so that dropout is the same
        is_recomputed = self.activation_checkpointing and torch.is_grad_enabled()
        kernel = self._attention_kernel(x)
        read, last = self._positions_read(batch), len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            rows = read if self.trim_last_layer and number == last else None
            arguments = (x, batch, kernel, rows)
            x = (
                checkpoint(layer, *arguments, use_reentrant=False)
                if is_recomputed
                else layer(*arguments)
            )
        masked: Tensor | slice = batch.masked_positions
        firsts: Tensor | slice = batch.cls_positions
        if self.trim_last_layer:  # `read` joins the two
            masked, firsts = slice(len(batch.labels)), slice(len(batch.labels), None)
        mlm_logits = self.mlm_head(x[masked])
        if self.pairing is Pairing.none:
            return mlm_logits, None
        pooled = torch.tanh(self.pooler(x[firsts]))
        return mlm_logits, self.pair_head(pooled)

    def _positions_read(self, batch: PackedBatch) -> Tensor:
        """Those of the last layer's output that the heads take."""
        if self.pairing is Pairing.none:
            return batch.masked_positions
        return torch.cat([batch.masked_positions, batch.cls_positions])

    def _attention_kernel(self, x: Tensor) -> attention.Kernel:
        """Asked here and not in the layers, which may be compiled: they get the answer."""
        kind, sizes = x.device.type, self.settings
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        head_dim = sizes.hidden_size // sizes.num_attention_heads
        return attention.kernel_of(x.device, dtype, head_dim)

    @torch.no_grad()
    def initialize(self, generator: Generator) -> None:
        """Draw all weights as google-research/bert does (modeling.py, create_initializer).

        Matrices and embeddings: normal of standard deviation initializer_range, truncated at two
        of them. Biases 0, LayerNorm 1 and 0. Rows that pad the vocabulary are 0 and draw nothing
        from the generator, so that the padding does not change the other weights. Nor does
        position_init: sinusoids replace what was drawn.
        """
        sigma = self.settings.initializer_std
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear | nn.Embedding):
                used = module.weight
                if module is self.embeddings.word:
                    nn.init.zeros_(used)
                    used = used[: self.vocab_size]
                nn.init.trunc_normal_(used, 0.0, sigma, -2 * sigma, 2 * sigma, generator)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.mlm_head.decoder.bias)
        if self.settings.position_init is PositionInit.sinusoidal:
            table = self.embeddings.position.weight
            table.copy_(math.sqrt(2) * sigma * sinusoids(*table.shape))  # their mean square is 1/2

    @torch.no_grad()
    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state`, by the names of `named_parameters`, into the parameters; ties stay.

        Raises SettingsError unless every name and shape matches.
        """
        own = dict(self.named_parameters())
        wrong = [f"{name} is missing" for name in own if name not in state]
        wrong += [f"{name} is not known" for name in state if name not in own]
        wrong += [
            f"{name} is {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ]
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise SettingsError(
                f"these weights do not fit the model: {'; '.join(wrong[:5])}{more}. "
                "Use the model settings and the vocabulary with which they were trained"
            )
        for name, parameter in own.items():
            parameter.copy_(state[name])


def sinusoids(positions: int, width: int) -> Tensor:
    """(positions, width) sines in the even and cosines in the odd columns, fp32.

    Wavelengths grow geometrically from 2 pi to 10,000 * 2 pi (Vaswani et al. 2017, section 3.5).
    """
    even = torch.arange(0, width, 2, dtype=torch.float64)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] / 10_000 ** (even / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width].float()


def _sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, summed in fp32, and the number of right guesses, without IGNORED."""
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return loss, (logits.detach().argmax(-1) == labels).sum()
