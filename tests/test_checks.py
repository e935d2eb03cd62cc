"""No setting takes NaN or infinity, and every seed is one that all generators take."""

import dataclasses
import math

import pytest

from patchcert.checks import check_numbers
from patchcert.cli import main
from patchcert.errors import ModelError, PatchcertError
from patchcert.models.config import ClassifierConfig
from patchcert.prediction.config import PredictionConfig
from patchcert.stages.resources import Resources
from patchcert.studies.config import StudyConfig, VarianceConfig
from patchcert.training.config import TrainingConfig
from patchcert.views.encoding import EncodingConfig

# Each with settings that make all others have an effect.
SETTINGS = {
    TrainingConfig: {},
    PredictionConfig: {"num_samples": 10},
    ClassifierConfig: {},
    EncodingConfig: {"mean": (0.5,), "std": (0.5,)},
    Resources: {},
    StudyConfig: {"vote_thresholds": (0.3,)},
    VarianceConfig: {},
}


def holds_floats(value):
    return isinstance(value, float) or (isinstance(value, tuple) and bool(value) and isinstance(value[0], float))


FLOATS = [
    (kind, field.name)
    for kind, settings in SETTINGS.items()
    for field in dataclasses.fields(kind)
    if holds_floats(getattr(kind(**settings), field.name))
]
SEEDS = [(kind, field.name) for kind in SETTINGS for field in dataclasses.fields(kind) if field.name.endswith("seed")]


def test_the_settings_with_floats_and_seeds_are_found():
    assert len(FLOATS) >= 20 and len(SEEDS) == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("kind", "name"), FLOATS, ids=lambda value: getattr(value, "__name__", value))
def test_numbers_that_are_not_finite_are_refused_by_name(kind, name, value):
    settings = SETTINGS[kind]
    before = getattr(kind(**settings), name)
    with pytest.raises(PatchcertError) as caught:
        kind(**settings | {name: (value,) if isinstance(before, tuple) else value})
    assert name in str(caught.value) and str(value) in str(caught.value)


@pytest.mark.parametrize("value", [-1, 2**63, 2**64, 10**30, 1.0])
@pytest.mark.parametrize(("kind", "name"), SEEDS, ids=lambda value: getattr(value, "__name__", value))
def test_seeds_that_some_generator_refuses_are_refused_by_name(kind, name, value):
    with pytest.raises(PatchcertError, match=name):
        kind(**SETTINGS[kind] | {name: value})
    kind(**SETTINGS[kind] | {name: 2**63 - 1})


def test_message_names_the_option_and_the_value():
    with pytest.raises(ModelError) as caught:
        ClassifierConfig(width=math.nan)
    assert str(caught.value) == (
        "classifier: width must be a finite number, not nan.\n  Give --classifier.width such a number."
    )

    @dataclasses.dataclass
    class Own:
        bounds: tuple[float, ...] = (0.0, math.inf)

    with pytest.raises(ModelError, match=r"^encoding: bounds must be a finite number, not inf\.\n.*--classifier.enc"):
        check_numbers(Own(), "classifier.encoding", ModelError)


@pytest.mark.parametrize(
    "words",
    [
        ["--classifier.width", "nan"],
        ["--training.seed", str(2**64)],
        ["--classifier.encoding.mean", "nan", "--classifier.encoding.std", "1"],
        ["--resources.part-timeout", "inf"],
        ["--study.score-tolerance", "nan"],
    ],
)
def test_the_command_line_says_so_and_leaves_nothing_behind(words, tmp_path, capsys):
    assert main(["train", "column4-digits", *words, "--work", str(tmp_path / "work")]) == 2
    said = capsys.readouterr()
    assert words[0].rpartition(".")[2].split("-")[0] in said.err + said.out
    assert "Traceback" not in said.err and not (tmp_path / "work").exists()
