"""BERT for pretraining over packed rows: no padding from the embeddings to the heads.

The arithmetic is that of Devlin et al. 2018 as released in google-research/bert (modeling.py) and
kept by `transformers.BertForPreTraining`: post-LayerNorm layers, dropout on the embeddings, on the
attention probabilities and on both sublayer outputs and nowhere else, the output matrix tied to the
word embedding. Two things are done otherwise, neither of which changes a number: sequences lie end
to end in one row, and the masked-token head runs at masked positions alone.

Every parameter is used in the `forward` of the module that holds it, and nowhere else, so that
engines which gather a module's parameters just before it runs (ZeRO stage 3) work unchanged.

Shapes: T tokens of the packed row, N sequences, M masked positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_prep.core.config import SettingsError
from data_prep.core.objectives import Pairing
from pretrain.config.settings import ModelSettings
from pretrain.data.packing import IGNORED, PackedBatch
from pretrain.model.attention import attention
from pretrain.model.cpu_dropout import Dropout

_GELU_FORM = {"gelu": "none", "gelu_new": "tanh"}  # Hugging Face's name: torch's `approximate`


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
        self.qkv = nn.Linear(hidden, 3 * hidden)  # queries, keys, values one below the other
        self.attention_out = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=eps)
        self.feed_forward_in = nn.Linear(hidden, settings.intermediate_size)
        self.feed_forward_out = nn.Linear(settings.intermediate_size, hidden)
        self.feed_forward_norm = nn.LayerNorm(hidden, eps=eps)
        self.dropout = Dropout(settings.hidden_dropout_prob)

    def forward(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """(T, D) to (T, D)."""
        qkv = self.qkv(x).view(x.shape[0], 3, self.num_heads, -1)
        attended = attention(qkv, batch, self.attention_dropout_prob if self.training else 0.0)
        x = self.attention_norm(x + self.dropout(self.attention_out(attended)))
        inner = F.gelu(self.feed_forward_in(x), approximate=self.gelu_form)
        return self.feed_forward_norm(x + self.dropout(self.feed_forward_out(inner)))


class Decoder(nn.Module):
    """From vectors to logits over the vocabulary, through the word embedding's own matrix.

    Rows that only pad the vocabulary get the logit -inf by way of the bias: probability 0 in the
    softmax and a gradient of exactly 0, at the price of an addition in one row of V numbers.
    """

    def __init__(self, tied: Tensor, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        assert isinstance(tied, nn.Parameter), "else the matrix would not be registered here"
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
    """BERT with its pretraining heads: of masked tokens, and of pairs where there are any.

    The head of pairs is the same for both kinds (`Pairing`): two classes, 1 for random or swapped.
    Without pairs there is neither that head nor the pooler below it: every parameter has a gradient.
    `vocab_size` counts the tokenizer's entries; the rows that pad it are the model's own affair
    and never seen outside. Construction leaves torch's weights: call `initialize` or
    `load_weights`.
    """

    def __init__(self, settings: ModelSettings, vocab_size: int, pairing: Pairing) -> None:
        super().__init__()
        self.settings = settings
        self.vocab_size = vocab_size
        self.pairing = pairing
        self.activation_checkpointing = False  # less memory, the same numbers: the engine's to set
        self.embeddings = Embeddings(settings, vocab_size)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.num_hidden_layers))
        if pairing is not Pairing.none:
            self.pooler = nn.Linear(settings.hidden_size, settings.hidden_size)
            self.pair_head = nn.Linear(settings.hidden_size, 2)
        self.mlm_head = MaskedTokenHead(settings, self.embeddings.word.weight, vocab_size)
        self.token_sums = _sums  # the engine may have it compiled
        self.num_parameters = sum(p.numel() for p in self.parameters())  # the tied matrix once

    def forward(self, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums over the micro-batch: losses of masked tokens and of pairs (fp32), and of each the
        number of right guesses (int64). Those of pairs are 0 where there are none.

        Sums and not means, for the mean over a global batch needs its global counts. Without a
        masked position the MLM loss is 0 and still has a (zero) gradient for every parameter.
        """
        mlm_logits, pair_logits = self._padded_logits(batch)
        mlm_loss, mlm_correct = self.token_sums(mlm_logits, batch.labels)
        if pair_logits is None:
            return mlm_loss, mlm_loss.new_zeros(()), mlm_correct, mlm_correct.new_zeros(())
        pair_loss, pair_correct = _sums(pair_logits, batch.next_sentence_labels)
        return mlm_loss, pair_loss, mlm_correct, pair_correct

    def logits(self, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
        """Logits at the masked positions, (M, V), padded rows cut, and of the pairs, (N, 2)."""
        mlm_logits, pair_logits = self._padded_logits(batch)
        return mlm_logits[:, : self.vocab_size], pair_logits

    def _padded_logits(self, batch: PackedBatch) -> tuple[Tensor, Tensor | None]:
        x = self.embeddings(batch)
        # a layer then keeps its input alone, and runs once more in the backward pass: the generators
        # are put back for it, so that dropout is the same
        is_recomputed = self.activation_checkpointing and torch.is_grad_enabled()
        for layer in self.layers:
            x = (
                checkpoint(layer, x, batch, use_reentrant=False)
                if is_recomputed
                else layer(x, batch)
            )
        mlm_logits = self.mlm_head(x[batch.masked_positions])
        if self.pairing is Pairing.none:
            return mlm_logits, None
        pooled = torch.tanh(self.pooler(x[batch.cls_positions]))
        return mlm_logits, self.pair_head(pooled)

    @torch.no_grad()
    def initialize(self, generator: Generator) -> None:
        """Draw all weights as google-research/bert does (modeling.py, create_initializer).

        Matrices and embeddings: normal of standard deviation initializer_range, drawn anew beyond
        two of them. Biases 0, LayerNorm 1 and 0. Rows that pad the vocabulary are 0 and take
        nothing from the generator, so that the padding does not change the other weights.
        """
        sigma = self.settings.initializer_range
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

    @torch.no_grad()
    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state`, by the names of `named_parameters`, into the parameters, ties kept.

        Raises SettingsError unless every name and every shape matches: nothing stays random silently.
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
                "Take the model settings and the vocabulary with which they were trained"
            )
        for name, parameter in own.items():
            parameter.copy_(state[name])


def _sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, summed in fp32, and the number of right guesses; IGNORED is neither."""
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return loss, (logits.detach().argmax(-1) == labels).sum()
