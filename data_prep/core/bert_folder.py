"""A BERT's folder as Hugging Face writes it, from anyone: small files typed, sizes bounded.

What its config.json claims is believed only as far as the weights have it, so nothing is allocated
for a claim. Fine-tuning, prediction and run.init_from read folders with this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from data_prep.core.config import SettingsError
from data_prep.core.files import MOST_JSON_BYTES, check_bounded, read_bounded, regular_size
from data_prep.core.printable import printable, shortened
from data_prep.core.records import Share, VocabSize, check_file_name

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# What transformers reads of a folder. Others may be anything: sentence-transformers has lists
_JSON_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt*", "*.pkl", "*.h5", "*.msgpack")
# Parts of names that wrappers of a model add: DDP, torch.compile, Fabric, FSDP
_WRAPPERS = (
    "module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
)  # fmt: skip
_WORDS = "embeddings.word_embeddings.weight"
_BY_ENTRY = (
    "cls.predictions.bias",
    "cls.predictions.decoder.bias",
    "cls.predictions.decoder.weight",
)

# Rows beyond the vocabulary, which are left out: at most so many, or as many as it has entries.
# Some files pad it, a released Italian BERT has 1,000 more than its 31,102 entries
MOST_BEYOND = 5000

Size = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
Layers = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class _Kind(msgspec.Struct):
    """The fields that tell a BERT from other models."""

    model_type: str = "bert"
    is_decoder: bool = False
    position_embedding_type: str | None = "absolute"

    def __post_init__(self) -> None:
        for name, expected in zip(self.__struct_fields__, self.__struct_defaults__, strict=True):
            if (found := getattr(self, name)) not in (expected, None):
                raise ValueError(f"{name} is {shortened(repr(found), 80)} and not {expected!r}")


class BertConfig(msgspec.Struct, kw_only=True):
    """The fields of a config.json that are read, with the values of old files that lack them."""

    vocab_size: VocabSize
    hidden_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    intermediate_size: Size
    hidden_act: str = "gelu"
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    layer_norm_eps: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-12
    initializer_range: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.02
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1
    classifier_dropout: Share | None = None
    pad_token_id: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] | None = 0
    tie_word_embeddings: bool = True
    architectures: list[str] | None = None
    id2label: dict[int, str] | None = None
    problem_type: str | None = None
    has_no_answer: bool = False  # of our own fine-tuning
    no_answer_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, no multiple of num_attention_heads, "
                f"{self.num_attention_heads}"
            )
        if self.id2label is not None and set(self.id2label) != set(range(len(self.id2label))):
            raise ValueError("id2label does not number its labels from 0")


def check_folder(folder: Path) -> BertConfig:
    """The config.json of a folder that has weights and a tokenizer, too. Reads small files only.

    Raises SettingsError on folders of other models, on pickled weights and on damaged files.
    """
    if not folder.is_dir():
        raise SettingsError(
            f"there is no folder {folder}; model= takes a folder, such as runs/x/export. "
            f"Download a model of the hub with: hf download {folder} --local-dir FOLDER"
        )
    config = read_config(folder)
    weight_files(folder)
    check_tokenizer_files(folder)
    return config


def read_config(folder: Path) -> BertConfig:
    """The config.json of a folder. Raises SettingsError if it is not that of a BERT."""
    path = folder / "config.json"
    if not path.is_file():
        raise SettingsError(
            f"{folder} is no Hugging Face folder: it has no config.json; "
            "export a run with python -m pretrain.export run=runs/x"
        )
    try:
        raw = read_bounded(path, MOST_JSON_BYTES)
        msgspec.json.decode(raw, type=_Kind)
        return msgspec.json.decode(raw, type=BertConfig)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SettingsError(
            f"{path} is not that of a BERT: {printable(str(error))}; take the folder of one"
        ) from error


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files with the weights. Raises SettingsError if one is missing, or all are pickles."""
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if (folder / INDEX).is_file():
        files = tuple(folder / name for name in _indexed(folder / INDEX))
        if missing := [path.name for path in files if not path.is_file()]:
            raise SettingsError(
                f"{folder / INDEX} names {', '.join(missing[:3])}, not there; get the rest"
            )
        return files
    pickled = sorted({path.name for pattern in PICKLED for path in folder.glob(pattern)})
    if not pickled:
        raise SettingsError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}; get it again")
    raise SettingsError(
        f"{folder} holds its weights as {', '.join(map(printable, pickled[:3]))} alone, a format "
        f"that can run code when read; get its {WEIGHTS}, or convert pytorch_model.bin, tensors "
        f"only:\n  {conversion(folder / 'pytorch_model.bin')}"
    )


def _indexed(path: Path) -> list[str]:
    class Index(msgspec.Struct):
        weight_map: dict[str, str]

    try:
        names = msgspec.json.decode(read_bounded(path, MOST_JSON_BYTES), type=Index).weight_map
        found = sorted(set(names.values()))
        for name in found:
            check_file_name(name)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError) as error:
        raise SettingsError(
            f"{path} is no index of weights: {printable(str(error))}; get it again"
        ) from error
    if not found:
        raise SettingsError(f"{path} names no file; get it again")
    return found


def conversion(pickled: Path) -> str:
    """A command that converts a pickle to safetensors, and reads nothing but its tensors."""
    return (
        'python -c "import torch; from safetensors.torch import save_file; '
        f"w = torch.load('{pickled}', map_location='cpu', weights_only=True); "
        f"save_file({{n: t.clone() for n, t in w.items()}}, '{pickled.parent / WEIGHTS}')\""
    )


def check_tokenizer_files(folder: Path) -> None:
    """Raise SettingsError if a folder has no tokenizer, or if what is read is no bounded JSON."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise SettingsError(
            f"{folder} has no tokenizer: tokenizer.json and vocab.txt are missing; "
            "copy them from the model's source"
        )
    for path in filter(Path.is_file, (folder / name for name in _JSON_FILES)):
        try:
            check_bounded(path, MOST_JSON_BYTES)
            msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise SettingsError(
                f"{path} is no JSON object ({printable(str(error))}); get it again"
            ) from error


def read_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of safetensors files, by their names without what wrappers added to them.

    Raises SettingsError if a file cannot be read.
    """
    return _of_each(files, "pt", lambda file, name: file.get_tensor(name))


def read_shapes(files: Iterable[Path]) -> dict[str, list[int]]:
    """The tensors' shapes, from the files' headers. Raises SettingsError as `read_weights`."""
    return _of_each(files, "np", lambda file, name: list(file.get_slice(name).get_shape()))


def _of_each(files: Iterable[Path], framework: str, read: Callable[[Any, str], T]) -> dict[str, T]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, T] = {}
    for path in files:
        regular_size(path)
        try:
            with safe_open(path, framework=framework) as file:
                for name in file.keys():
                    bare = bare_name(name)
                    if bare in found:
                        raise SettingsError(f"{path} has {shortened(bare)} twice; get it again")
                    found[bare] = read(file, name)
        except (
            OSError,
            SafetensorError,
            AttributeError,
            KeyError,
            TypeError,
            RuntimeError,
        ) as error:
            raise SettingsError(
                f"{path} cannot be read as safetensors ({shortened(str(error))}); get the file "
                "again (a file of some hundred bytes is a pointer of Git LFS: git lfs pull)"
            ) from error
    return found


def bare_name(name: str) -> str:
    """A weight's name without the parts that DDP, torch.compile, FSDP and Lightning add."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts).removeprefix("model.")


def check_shapes(
    shapes: Mapping[str, Sequence[int]], config: BertConfig, entries: int, folder: Path
) -> int:
    """Rows of the word embeddings beyond a vocabulary of so many entries.

    Raises SettingsError unless the weights have the sizes that config.json claims, so that a model
    of these sizes is no larger than they are.
    """
    hidden, large = config.hidden_size, config.intermediate_size
    rows = next((tuple(shapes[p + _WORDS])[:1] for p in ("bert.", "") if p + _WORDS in shapes), ())
    wanted = {
        _WORDS: (*rows, hidden),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
    }
    for layer in range(config.num_hidden_layers):
        name = f"encoder.layer.{layer}."
        wanted[f"{name}attention.self.query.weight"] = (hidden, hidden)
        wanted[f"{name}intermediate.dense.weight"] = (large, hidden)
    for name, shape in wanted.items():
        found = shapes.get(f"bert.{name}", shapes.get(name))
        if found is None:
            raise SettingsError(
                f"{folder}: config.json's BERT has weights {name}, but the files lack them; they "
                f"hold {shortened(', '.join(sorted(shapes)[:3]))}, ...; export or download it again"
            )
        if tuple(found) != shape:
            raise SettingsError(
                f"{folder}: {name} has the shape {list(found)}, but by config.json "
                f"{list(shape)}; export or download it again"
            )
    if rows[0] < entries:
        raise SettingsError(
            f"{folder}: the tokenizer has {entries:,} entries, but the model has embeddings for "
            f"{rows[0]:,}; copy both from the same model"
        )
    if (beyond := rows[0] - entries) > max(MOST_BEYOND, entries):
        raise SettingsError(
            f"{folder}: the model has embeddings for {rows[0]:,} entries, but the tokenizer has "
            f"{entries:,}; get the weights' own tokenizer"
        )
    return beyond


def without_rows_beyond(state: Mapping[str, Tensor], entries: int) -> dict[str, Tensor]:
    """The weights with one row for each of so many entries of the vocabulary."""
    names = (_WORDS, f"bert.{_WORDS}", *_BY_ENTRY)
    return {
        name: tensor[:entries].clone() if name in names and len(tensor) > entries else tensor
        for name, tensor in state.items()
    }


def identity(folder: Path, *, has_weights: bool = True) -> str:
    """Checksum of config and, unless told otherwise, weights: identifies the model of a result."""
    digest = hashlib.blake2b(digest_size=16)
    weights = folder.glob("*.safetensors") if has_weights else ()
    for path in sorted([folder / "config.json", *weights]):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
