"""What a person types becomes typed settings, or one sentence with the cure."""

import pytest

from data_prep.core.config import SettingsError, as_dict, choices, compose
from pretrain.config.settings import Precision, Settings


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
        ("optim.learning_rate=fast", "optim.learning_rate: Value 'fast' of type 'str'"),
        ("run.resume=maybe", r"run.resume: .*auto, must, never"),
        ("+model=huge", "model=huge is not known; there are base, large, small, tiny"),
        ("engine=zero9", "engine=zero9 is not known; there are .*zero0, zero1"),
        ("faster", "'faster' is no setting; settings are typed as name=value"),
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
    run = {"name": "x", "dir": "runs", "init_from": None, "seed": 12345, "resume": "auto"}
    assert plain["run"] == run
    assert plain["optim"]["betas"] == [0.9, 0.999]
