"""run.init_from: the weights of someone else's BERT or of our own run, and nothing silently."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from made_manifests import shards_manifest
from model_samples import hugging_face_config, old_names, small_settings
from run_in_fork import finished_run, pretrain_run
from safetensors.torch import load_file, save_file
from small_corpus import cut
from test_export import TOKENS, card
from torch import Tensor

from data_prep import vocab
from data_prep.core import job
from data_prep.core.config import SettingsError
from data_prep.core.files import read_json, write_json
from data_prep.core.objectives import Pairing
from data_prep.core.records import Normalization, TextForm, typed
from data_prep.tokenizer.hf_files import save_tokenizer
from data_prep.tokenizer.released import differing
from pretrain.config import load
from pretrain.config.settings import Settings
from pretrain.huggingface import init_from
from pretrain.huggingface.export import export
from pretrain.huggingface.init_from import InitWeights, find
from pretrain.huggingface.model_card import model_card
from pretrain.model.bert import BertForPreTraining
from pretrain.run_folder.jsonl import readable_lines

transformers = pytest.importorskip("transformers")

CASED = [*TOKENS, "Cat"]
HEAD = ["pair_head.bias", "pair_head.weight"]


def saved(folder: Path, name: str = "BertForPreTraining", tokens: list[str] = TOKENS) -> Any:
    """A saved model of `transformers` with random weights and biases; returns the model."""
    config = hugging_face_config(len(tokens), small_settings(hidden_act="gelu"))
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    save_tokenizer(folder, tokens, TextForm(tokens is not CASED))
    return model


def drawn(pairing: Pairing = Pairing.nsp, num_entries: int = len(TOKENS)) -> BertForPreTraining:
    model = BertForPreTraining(small_settings(), num_entries, pairing)
    model.initialize(torch.Generator().manual_seed(1))
    return model


def taken(
    origin: InitWeights, model: BertForPreTraining, tokens: list[str] = TOKENS
) -> dict[str, Any]:
    """What came of giving `model` the folder's weights."""
    weights, facts = origin.weights(model, tokens, TextForm(tokens is not CASED))
    model.load_weights(weights)
    return facts


def state(model: BertForPreTraining) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def settings_for(data: Path, *typed: str) -> Settings:
    sizes = "model.hidden_size=32 model.num_hidden_layers=2 model.num_attention_heads=4".split()
    sizes += ["model.intermediate_size=64", "model.max_position_embeddings=64"]
    return load.load(
        ["+model=base", *sizes, f"data.dir={data}", "data.seq_len=64", *typed], world_size=1
    )[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder as far as it is looked at: its vocabulary."""
    save_tokenizer(tmp_path / "data/vocab", TOKENS, TextForm(True))
    return tmp_path / "data"


@pytest.mark.parametrize("tokens", [TOKENS, CASED], ids=["uncased", "cased"])
def test_what_transformers_saved_is_exported_again_bit_for_bit(tmp_path, tokens) -> None:
    assert len(tokens) % 8
    theirs = saved(tmp_path / "bert", tokens=tokens)
    model = drawn(num_entries=len(tokens))
    facts = taken(find(str(tmp_path / "bert")), model, tokens)
    assert (facts["new"], facts["left_out"], facts["added_words"]) == ([], [], 0)
    export(
        state(model), model.settings, Pairing.nsp, tmp_path / "bert", tmp_path / "export", card()
    )
    again = transformers.BertForPreTraining.from_pretrained(tmp_path / "export").state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again[name], tensor), name


@pytest.mark.parametrize(
    ("name", "pairing", "new", "left_out"),
    [
        ("BertForMaskedLM", Pairing.nsp, [*HEAD, "pooler.bias", "pooler.weight"], []),
        ("BertForMaskedLM", Pairing.none, [], []),
        ("BertForPreTraining", Pairing.none, [], 4 * ["pooler or head of pairs"]),
        (
            "BertForSequenceClassification",
            Pairing.nsp,
            [*HEAD, *5 * ["mlm_head"]],
            2 * ["classifier"],
        ),
        ("BertModel", Pairing.nsp, [*HEAD, *5 * ["mlm_head"]], []),
    ],
)  # fmt: skip
def test_missing_heads_are_new_and_surplus_ones_are_left_out_and_both_are_logged(
    tmp_path: Path, name: str, pairing: Pairing, new: list[str], left_out: list[str]
) -> None:
    saved(tmp_path, name)
    model = drawn(pairing)
    before = state(model)
    facts = taken(find(str(tmp_path)), model)
    assert len(facts["new"]) == len(new)
    assert {*HEAD} <= {*facts["new"]} or HEAD[0] not in new
    assert len(facts["left_out"]) == len(left_out)
    for parameter, value in state(model).items():
        assert torch.equal(value, before[parameter]) == (parameter in facts["new"]), parameter
    said = init_from.summary({"checksum": "0"}, facts, 30_522)
    assert all(absent in said for absent in [*facts["new"], *facts["left_out"]])
    expected = "the MLM loss of the first steps is about ln 30,522 = 10.3, or a little more"
    assert (expected in said) is (len(new) >= 5)


def test_old_names_halves_and_several_files_are_read(tmp_path: Path) -> None:
    saved(tmp_path)
    expected = drawn()
    taken(find(str(tmp_path)), expected)
    old = old_names(load_file(tmp_path / "model.safetensors"))
    old = {name: tensor.half() for name, tensor in old.items()}
    old["cls.predictions.decoder.bias"] = old.pop("cls.predictions.bias")
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    (tmp_path / "model.safetensors").unlink()
    names = sorted(old)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, part in parts.items():
        save_file({name: old[name] for name in part}, tmp_path / file)
    index = {name: file for file, part in parts.items() for name in part}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": index})
    model = drawn()
    assert taken(find(str(tmp_path)), model)["dtypes"] == ["float16"]
    for name, value in state(model).items():
        assert torch.equal(value, dict(expected.named_parameters())[name].half().float()), name
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(SettingsError, match=r"index\.json names b\.safetensors, not there"):
        find(str(tmp_path))


def test_pickled_weights_are_refused_with_a_command_that_converts_them(tmp_path: Path) -> None:
    saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SettingsError, match=r"as pytorch_model\.bin alone") as refusal:
        find(str(tmp_path))
    command = str(refusal.value).splitlines()[-1].strip()
    code = command.removeprefix('python -c "').removesuffix('"')
    exec(code, {})
    assert find(str(tmp_path)).files == (tmp_path / "model.safetensors",)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(tensor, weights[name])


def test_another_model_is_refused_with_both_sizes_and_the_settings_that_fit(tmp_path, data) -> None:
    saved(tmp_path / "bert")
    origin = find(str(tmp_path / "bert"))
    manifest = shards_manifest()
    origin.check(settings_for(data), manifest)
    with pytest.raises(
        SettingsError, match=r"hidden_size is 32 there and 64 in this run.*Type \+model"
    ) as refusal:
        origin.check(settings_for(data, "model.hidden_size=64"), manifest)
    cure = str(refusal.value).split("Type ")[1].split()
    origin.check(load.load([*cure, f"data.dir={data}", "data.seq_len=64"], 1)[0], manifest)


def test_another_vocabulary_is_refused_with_both_files_and_the_first_difference(
    tmp_path: Path, data: Path
) -> None:
    tokens = [*TOKENS]
    tokens[7] = "lynx"
    saved(tmp_path / "bert", tokens=tokens)
    origin = find(str(tmp_path / "bert"))
    with pytest.raises(SettingsError) as refusal:
        origin.check(settings_for(data), shards_manifest())
    text = str(refusal.value)
    assert f"{data}/vocab/vocab.txt ({len(TOKENS)} entries)" in text
    assert f"run.init_from={tmp_path}/bert ({len(TOKENS)} entries)" in text
    assert f"entry 7 is {TOKENS[7]!r} here and 'lynx' there" in text
    assert f"vocab_file={tmp_path}/bert/tokenizer.json lowercase=true" in text


def test_entries_after_the_folder_s_get_the_mean_of_their_pieces_and_are_counted(tmp_path) -> None:
    theirs = saved(tmp_path)
    tokens = [*TOKENS, "cats", "lynx"]
    model = drawn(num_entries=len(tokens))
    facts = taken(find(str(tmp_path)), model, tokens)
    assert (facts["added_words"], facts["added_words_of_unknown_pieces"]) == (2, 1)
    pieces = [TOKENS.index("cat"), TOKENS.index("##s")]
    for ours, given in (
        (model.embeddings.word.weight, theirs.bert.embeddings.word_embeddings.weight),
        (model.mlm_head.decoder.bias, theirs.cls.predictions.bias),
    ):
        assert torch.equal(ours[: len(TOKENS)], given)
        assert torch.equal(ours[len(TOKENS)], given[pieces].mean(0))
        assert torch.equal(ours[len(TOKENS) + 1], given[TOKENS.index("[UNK]")])
        assert not ours[len(tokens) :].any()


def test_an_added_entry_without_pieces_gets_the_row_of_unknown_words(tmp_path: Path) -> None:
    theirs = saved(tmp_path)
    tokens = [*TOKENS, "\u2028", "\u3000", "cats"]
    model = drawn(num_entries=len(tokens))
    assert taken(find(str(tmp_path)), model, tokens)["added_words_of_unknown_pieces"] == 2
    rows = theirs.bert.embeddings.word_embeddings.weight
    for number in (len(TOKENS), len(TOKENS) + 1):
        assert torch.equal(model.embeddings.word.weight[number], rows[TOKENS.index("[UNK]")])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_accents_kept_there_and_removed_here_are_refused_and_taken_alike(
    tmp_path: Path, data: Path, name: str
) -> None:
    saved(tmp_path / "bert")
    save_tokenizer(tmp_path / "bert", TOKENS, TextForm(True, False))
    for other in {"tokenizer.json", "tokenizer_config.json"} - {name}:
        (tmp_path / "bert" / other).unlink()
    origin = find(str(tmp_path / "bert"))
    with pytest.raises(SettingsError, match=r"strip_accents=false; prepare .* lowercase=true"):
        origin.check(settings_for(data), shards_manifest())
    origin.check(settings_for(data), shards_manifest(strip_accents=False))


FORMS = [
    TextForm(True, False, Normalization.nfc),
    TextForm(True, None, Normalization.nfkc, tokenize_chinese_chars=False),
    TextForm(True, None, clean_text=False),
    TextForm(True, False, turkish_i=True),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_another_text_form_is_named_with_a_cure_that_works(tmp_path, data, form) -> None:
    saved(tmp_path / "bert")
    save_tokenizer(tmp_path / "bert", TOKENS, form)
    origin = find(str(tmp_path / "bert"))
    there = typed(differing(form.rules, TextForm(True)))
    with pytest.raises(SettingsError, match=f"and that of .* has {there}; prepare ") as refused:
        origin.check(settings_for(data), shards_manifest())
    cure = str(refused.value).split("data_prep.vocab ")[1].split(" replace=true")[0]
    made = vocab.run(job.load([*cure.split(), f"data_dir={tmp_path / 'again'}"]))
    assert made.form == form
    origin.check(settings_for(tmp_path / "again"), shards_manifest(**msgspec.structs.asdict(form)))


def with_config(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", {**config, **changes})

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "is no folder"),
        (lambda folder: (folder / "config.json").unlink(), "holds neither config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights: neither"),
        (with_config(model_type="roberta"), "model_type is 'roberta' and not 'bert'"),
        (with_config(hidden_act="relu"), "hidden_act is 'relu', .* have gelu or gelu_new; take"),
        (with_config(hidden_act=["gelu"]), r"Expected `str`, got `array` - at `\$\.hidden_act`"),
        (with_config(hidden_size="32"), r"Expected `int`, got `str` - at `\$\.hidden_size`"),
        (with_config(num_hidden_layers=0), r"`int` >= 1 - at `\$\.num_hidden_layers`"),
        (with_config(max_position_embeddings=10**15), r"<= .* at `\$\.max_position_embeddings`"),
        (with_config(layer_norm_eps=None), r"got `null` - at `\$\.layer_norm_eps`"),
        (lambda folder: [(folder / name).unlink() for name in ("vocab.txt", "tokenizer.json")],
         "has neither tokenizer.json nor vocab.txt"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_bert_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    saved(tmp_path / "bert")
    change(tmp_path / "bert")
    with pytest.raises(SettingsError, match=said):
        find(str(tmp_path / "bert"))


@pytest.mark.parametrize("more", [1, 127, 1000])
def test_rows_beyond_the_vocabulary_are_left_out_and_logged(tmp_path: Path, more: int) -> None:
    saved(tmp_path, tokens=[*TOKENS, *(f"more{i}" for i in range(more))])
    save_tokenizer(tmp_path, TOKENS, TextForm(True))
    facts = taken(find(str(tmp_path)), drawn())
    assert facts["rows_beyond_vocabulary"] == more
    assert f"left out: {more} rows beyond the vocabulary" in init_from.summary(
        {"checksum": "0"}, facts, 30_522
    )


def test_fewer_rows_than_entries_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    save_tokenizer(tmp_path, [*TOKENS, "more"], TextForm(True))
    with pytest.raises(SettingsError, match=r"has 23 entries, .* embeddings for 22"):
        find(str(tmp_path))


@pytest.mark.parametrize(
    "wrapped",
    ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "model.{}", "model._orig_mod.{}"],
)
def test_a_run_starts_from_names_that_wrappers_changed(tmp_path: Path, wrapped: str) -> None:
    saved(tmp_path)
    expected = drawn()
    taken(find(str(tmp_path)), expected)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {wrapped.format(name): tensor for name, tensor in weights.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    model = drawn()
    assert taken(find(str(tmp_path)), model)["left_out"] == []
    for name, value in state(model).items():
        assert torch.equal(value, state(expected)[name]), name


def test_a_start_from_weights_of_other_names_is_refused_with_these(tmp_path: Path) -> None:
    saved(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({f"student.{n}": t for n, t in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(SettingsError, match=r"files lack them; they hold student\."):
        find(str(tmp_path))


def test_more_rows_than_a_vocabulary_can_lack_are_another_model_s(tmp_path: Path) -> None:
    saved(tmp_path, tokens=[*TOKENS, *(f"more{i}" for i in range(5_001))])
    save_tokenizer(tmp_path, TOKENS, TextForm(True))
    with pytest.raises(SettingsError, match="get the weights' own tokenizer"):
        find(str(tmp_path))


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(SettingsError, match=r"model\.safetensors cannot be read .*git lfs pull"):
        taken(find(str(tmp_path)), drawn())


def test_the_model_card_lists_what_was_new(tmp_path: Path) -> None:
    saved(tmp_path / "bert", "BertForMaskedLM")
    facts = taken(find(str(tmp_path / "bert")), drawn())
    text = model_card({**card(), "start": {"checksum": "0", **facts}}, 1, is_lowercase=True)
    start = "`bert` (xxh3 0; from random weights: the pooler, the pair head) by masked"
    assert f"pretrained from the weights of {start}" in text


@pytest.fixture
def trained(sample_dir: Path, tmp_path: Path) -> list[str]:
    """The command of runs that take a second; the run `first` has been made by it."""
    cut(sample_dir, tmp_path / "corpus", [16], [8])
    command = (
        "+model=tiny model.hidden_size=16 model.num_hidden_layers=1 model.intermediate_size=32 "
        "data.dir=corpus data.seq_len=128 optim.global_batch=4 schedule.total_steps=2 "
        "survival.rehearse=false survival.on_spike=rewind checkpoint.every_steps=10 "
        "monitor.every_steps=1 eval.every_steps=2 engine.zero_stage=0 monitor.sentences=[]"
    ).split()
    finished_run([*command, "run.name=first"], tmp_path)
    return command


def test_a_run_starts_from_another_s_newest_checkpoint_and_later_from_its_own_alone(
    trained: list[str], tmp_path: Path
) -> None:
    second = [*trained, "run.name=second", "run.init_from=runs/first"]
    finished_run(second, tmp_path)
    newest = tmp_path / "runs/first/checkpoints/step-00000002"
    folder = tmp_path / "runs/second"
    begun = folder / "checkpoints/step-00000000"
    weights, given = load_file(begun / "model.safetensors"), load_file(newest / "model.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in given.items())
    moments = load_file(begun / "optimizer.safetensors").values()
    assert not any(tensor.any() for tensor in moments)
    [event] = [e for e in readable_lines(folder / "events.jsonl") if e["event"] == "init_from"]
    checksum = read_json(newest / "manifest.json")["files"]["model.safetensors"]["checksum"]
    assert (event["folder"], event["checksum"], event["new"]) == (
        "runs/first/checkpoints/step-00000002", checksum, []
    )  # fmt: skip
    text = (folder / "export/README.md").read_text()
    assert f"from the weights of `first/step-00000002` (xxh3 {checksum}) by masked" in text

    shutil.rmtree(tmp_path / "runs/first")
    finished_run(second, tmp_path)
    kinds = [event["event"] for event in readable_lines(folder / "events.jsonl")]
    assert (kinds.count("init_from"), kinds.count("resumed")) == (1, 1)
    statuses, output = pretrain_run(second[:-1], tmp_path)
    assert statuses == [2]
    assert "run.init_from: {" in output
