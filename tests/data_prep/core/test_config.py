"""What a person types becomes typed settings, or one sentence with the cure."""

from pathlib import Path

import pytest

from data_prep.core.config import (
    SettingsError,
    as_dict,
    as_overrides,
    choices,
    compose,
    conf_file,
)
from data_prep.core.entry import OWN_CONF
from data_prep.core.settings import DataPrepSettings
from pretrain.config.settings import Precision, Settings
from scripts.finetuning import settings as finetuning


def test_the_last_of_several_overrides_of_one_key_holds() -> None:
    settings, chosen = compose(
        "config", Settings, ["+model=large", "run.seed=1", "+model=tiny", "run.seed=2"]
    )
    assert chosen["model"] == "tiny"
    assert settings.model.hidden_size == 128
    assert settings.run.seed == 2


def test_model_is_accepted_without_its_plus_sign() -> None:
    settings, _ = compose("config", Settings, ["model=base"])
    assert settings.model.hidden_size == 768


@pytest.mark.parametrize(
    "text",
    ["12_3", "007", "1e5", "true", "über", "空", "a b", "#1", "a=b", "[1]", "{a}", "a,b", "it's",
     'say "x"', "a\\'b\\", "~", "-1", "", "a: b", "$(x)"],
)  # fmt: skip
def test_a_string_setting_is_the_text_that_was_typed(text: str) -> None:
    settings, _ = compose("config", Settings, ["+model=tiny", f"data.dir=/x/{text}"])
    assert settings.data.dir == f"/x/{text}"


def test_a_name_of_digits_stays_as_typed() -> None:
    settings, _ = compose("config", Settings, ["+model=tiny", "run.name=12_3"])
    assert settings.run.name == "12_3"


def test_a_tilde_at_the_start_is_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/é")
    settings, _ = compose("config", Settings, ["+model=tiny", "run.dir=~/runs"])
    assert settings.run.dir == "/home/é/runs"


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_around_a_text_are_not_part_of_it(quote: str) -> None:
    settings, _ = compose("config", Settings, ["+model=tiny", f"data.dir={quote}a b{quote}"])
    assert settings.data.dir == "a b"


@pytest.mark.parametrize(
    "text", ["~", "null", "it's", "'a'", "a\\'b", "\\", "", "{a}, [b]", "=", "1_2"]
)
def test_settings_as_overrides_are_the_same_settings(text: str) -> None:
    settings, _ = compose("config", Settings, ["+model=tiny", f"run.init_from='{text}'"])
    again, _ = compose("config", Settings, ["+model=base", *as_overrides(as_dict(settings))])
    assert again == settings
    assert again.run.init_from == text


def test_null_is_no_text_where_a_setting_may_be_left_out() -> None:
    settings, _ = compose("config", Settings, ["+model=tiny", "run.init_from=null"])
    assert settings.run.init_from is None


def test_a_typed_dict_replaces_the_one_of_the_files() -> None:
    typed = ["+task=mnli", "task.labels={a: b}"]
    settings, _ = compose("finetune", finetuning.Settings, typed)
    assert settings.task.labels == {"a": "b"}


def test_a_choice_becomes_its_enum() -> None:
    settings, _ = compose("config", Settings, ["+model=tiny", "engine.precision=bf16"])
    assert settings.engine.precision is Precision.bf16


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optim.learnin_rate=1",
            "there is no setting 'optim.learnin_rate'; did you mean optim.lea",
        ),
        ("+optim.learnin_rate=1", "there is no setting 'optim.learnin_rate'; did you mean optim.l"),
        ("optim.learning_rate=fast", "optim.learning_rate=fast: it takes a number"),
        ("run.resume=maybe", r"run.resume: .*auto, must, never"),
        ("+model=huge", "model=huge is not known; there are base, large, small, tiny"),
        ("engine=zero9", "engine=zero9 is not known; there are .*zero0, zero1"),
        ("faster", "'faster' is no setting; settings are typed as name=value"),
        ("~run.name", "'~run.name' is no setting; settings are typed as name=value"),
        ("rn.name=a b", "there is no setting 'rn.name'; did you mean run.name"),
        ("hydra.searchpath=[pkg://a]", "there is no setting 'hydra.searchpath'"),
        ("=x", "there is no setting ''"),
        ("optim.betas=0.9,0.99", r"it takes a list; type optim.betas=\[0.9,0.99\]"),
        ("data.dir=/x/${y}", r"data.dir: no value of a setting may hold the text '\${'"),
        ("optim.betas=['${oc.env:HOME}']", r"optim.betas: no value of a setting may hold"),
        ("data.dir=/x/${", r"data.dir: no value of a setting may hold the text '\${'"),
        ("optim=5", "optim=5 is not known; there are adamw"),
        ("model=é", "model=é is not known; there are base, large, small, tiny"),
        ("run=5", "run=5: run is a group of settings; they are run.name, run.dir"),
        (
            "data.mixture=[a,b]",
            r"data.mixture=\[a,b\]: it takes names with values, as in data.mixture=",
        ),
        ("run.seed=1,2", r"run.seed=1,2: a setting takes one value$"),
        ("run.seed=é", "run.seed=é: the value cannot be read"),
        ("optim.betas=0.9", r"optim.betas: takes a list, as in optim.betas=\[\]"),
    ],
)
def test_a_slip_is_one_sentence_with_the_cure(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        compose("config", Settings, ["+model=base", override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", choices("model"))
@pytest.mark.parametrize("data", choices("data"))
def test_every_model_composes_with_every_data_set(model: str, data: str) -> None:
    settings, _ = compose("config", Settings, [f"+model={model}", f"data={data}"])
    assert settings.model.hidden_size % settings.model.num_attention_heads == 0


@pytest.mark.parametrize("group", ["engine", "optim", "log", "schedule"])
def test_every_file_of_a_group_composes(group: str) -> None:
    for name in choices(group):
        compose("config", Settings, ["+model=tiny", f"{group}={name}"])


def test_settings_become_plain_values() -> None:
    settings, _ = compose("config", Settings, ["+model=tiny", "run.name=x"])
    plain = as_dict(settings)
    run = {"name": "x", "dir": "runs", "init_from": None, "seed": 12345, "resume": "auto",
           "extend": False, "stop_after": None}  # fmt: skip
    assert plain["run"] == run
    assert plain["optim"]["betas"] == [0.9, 0.999]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lowercse", "lowercase"),
        ("vocabsize", "vocab_size"),
        ("replce", "replace"),
        ("heldout", "heldout_fraction"),
        ("maskng.rate", "masking.rate"),
        ("masking.maskshare", "masking.mask_share"),
    ],
)
def test_only_what_is_spelt_alike_is_proposed(typed: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=rf"'{typed}'; did you mean {meant}\?"):
        compose("data_prep", DataPrepSettings, ["data_dir=d", f"{typed}=1"])


def test_a_word_of_a_name_is_answered_with_the_names_that_have_it() -> None:
    with pytest.raises(SettingsError, match=r"'batch'; did you mean optim\.global_batch"):
        compose("config", Settings, ["+model=tiny", "batch=1"])


@pytest.mark.parametrize("phase", ["{until: 5}", "{moment: kept}", "{data: {seq_len: 512}}"])
def test_an_unknown_key_of_a_phase_is_answered_with_those_of_a_phase(phase: str) -> None:
    with pytest.raises(
        SettingsError, match=r"an entry of phases has no '\w+'; it takes changes, mo"
    ):
        compose("config", Settings, ["+model=tiny", f"phases=[{phase}]"])


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own settings, with an `optim/` in it, as --config-dir names it."""
    monkeypatch.setenv(OWN_CONF, str(tmp_path))
    (tmp_path / "optim").mkdir()
    return tmp_path


def test_a_file_of_ones_own_is_one_more_choice(own_folder: Path) -> None:
    (own_folder / "optim" / "mine.yaml").write_text("defaults: [adamw]\neps: 0.125\n")
    settings, chosen = compose("config", Settings, ["+model=tiny", "optim=mine"])
    assert (chosen["optim"], settings.optim.eps) == ("mine", 0.125)
    assert {"mine", "lamb"} <= set(choices("optim"))


def test_a_file_of_ones_own_comes_before_the_one_of_the_same_name(own_folder: Path) -> None:
    theirs = conf_file("optim/lamb.yaml").read_text()
    (own_folder / "optim" / "lamb.yaml").write_text(f"{theirs}\neps: 0.125\n")
    settings, _ = compose("config", Settings, ["+model=tiny", "optim=lamb"])
    assert settings.optim.eps == 0.125
