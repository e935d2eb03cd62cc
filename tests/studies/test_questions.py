import dataclasses
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchcert.errors import GeometryError, StudyError
from patchcert.geometry import BandViews, BlockViews, CropViews, Patch, PixelViews, SampledViews
from patchcert.studies.config import CERTIFICATES, StudyConfig
from patchcert.studies.questions import doubtful_scores, headline_patch, questions
from patchcert.votes import SCORE_SCALE

COLUMNS = BandViews(image_size=(32, 32), width=4)
CROPS = CropViews(image_size=(32, 32), crop_size=10)
DRAWN = {"certificates": ("random_crops_reported",), "num_draws": (128,)}


def no_warning(text):
    raise AssertionError(text)


def ask(config, views=COLUMNS, score_floor=0.1, on_warning=no_warning):
    return questions(config, views, score_floor, on_warning=on_warning)


def test_grid_is_complete_and_keys_are_distinct():
    config = StudyConfig(
        certificates=tuple(CERTIFICATES),
        patches=("2x2", "5x5", "2.4%@6:1"),
        vote_thresholds=(0.3, 0.2),
        num_draws=(64, 128),
        replacement=("with", "without"),
        min_confidences=(0.95, 0.99),
    )
    asked = ask(config, CROPS)
    theorems = 3 * 2 * 3  # patches x certificates x (two thresholds and the top class)
    reported = 3 * 2 * 2 * 2  # patches x draws x replacement x confidences
    exact = 3 * 2 * 2  # patches x draws x confidences, without replacement only
    fresh = reported
    sampled = 3 * 2  # patches x confidences, one number of samples
    assert len(asked) == theorems + reported + exact + fresh + sampled
    assert len({question.key for question in asked}) == len(asked)
    assert [question.patch.label for question in asked[:3]] == ["2x2", "5x5", "12x2"]
    assert asked[0].vote_threshold == 0.3, "the first listed setting comes first"
    assert all(question.affected == CROPS.affected(question.patch) for question in asked)


def test_keys_are_stable():
    keys = [question.key for question in ask(StudyConfig(**DRAWN, patches=("5x5",), seed=7), CROPS)]
    assert keys == ["random_crops_reported/5x5/top_class/128 with replacement,seed=7/confidence>=0.95"]
    theorem = ask(StudyConfig(certificates=("placement",), patches=("5x5",), vote_thresholds=(0.3,), top_class=False))
    assert [question.key for question in theorem] == ["placement/5x5/threshold=0.3/all"]


def test_top_class_table_answers_top_class_questions_only():
    assert {question.vote_rule for question in ask(StudyConfig(), score_floor=None)} == {"top_class"}
    with pytest.raises(StudyError, match=r"vote_threshold 0\.3 needs scores.*top classes only"):
        ask(StudyConfig(vote_thresholds=(0.3,)), score_floor=None)


def test_a_tolerance_is_part_of_keys_and_notes_of_threshold_rules_only():
    asked = ask(StudyConfig(patches=("5x5",), vote_thresholds=(0.3,), score_tolerance=0.002))
    assert [question.key for question in asked] == [
        "counting/5x5/threshold=0.3/all/tolerance=0.002",
        "placement/5x5/threshold=0.3/all/tolerance=0.002",
        "counting/5x5/top_class/all",
        "placement/5x5/top_class/all",
    ]
    note = "scores within 0.002 of the threshold count for the attacker"
    assert [question.note for question in asked] == [note, note, "", ""]
    assert asked[0].ballot_key == "threshold=0.3/all", "predictions stay those of the plain rule"


def test_a_tolerance_may_reach_the_score_floor_but_not_below():
    assert ask(StudyConfig(vote_thresholds=(0.3,), score_tolerance=0.2), score_floor=0.1)
    with pytest.raises(StudyError, match=r"tolerance 0\.201 of vote_threshold 0\.3 reach below .* score floor 0\.1"):
        ask(StudyConfig(vote_thresholds=(0.9, 0.3), score_tolerance=0.201), score_floor=0.1)
    with pytest.raises(StudyError, match="reach below the vote table's score floor"):
        ask(StudyConfig(vote_thresholds=(0.3,), score_tolerance=0.5), score_floor=0.001)


@pytest.mark.parametrize(
    "changes",
    [{}, {"certificates": ("fresh_draw",), "num_draws": (16,), "vote_thresholds": (0.3,)}],
)
def test_a_tolerance_without_a_threshold_rule_warns(changes):
    warnings = []
    ask(StudyConfig(score_tolerance=0.01, **changes), on_warning=warnings.append)
    assert len(warnings) == 1 and "score_tolerance has no effect" in warnings[0]


def test_score_margins_are_kept_at_the_headline_setting():
    config = StudyConfig(patches=("2x2", "5x5"), vote_thresholds=(0.3, 0.2))
    kept = [question.key for question in ask(config) if question.keeps_score_margin]
    assert kept == ["placement/5x5/threshold=0.3/all"]
    assert not any(q.keeps_score_margin for q in ask(dataclasses.replace(config, score_margins=False)))
    warnings = []
    ask(StudyConfig(score_margins=False), on_warning=warnings.append)
    assert len(warnings) == 1 and "score_margins has no effect" in warnings[0]


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, SCORE_SCALE))
def test_doubtful_scores_are_those_within_the_tolerance_exactly(threshold, tolerance, stored):
    distance = abs(Fraction(stored, SCORE_SCALE) - Fraction(repr(threshold)))
    lowest, highest = doubtful_scores(threshold, tolerance)
    assert (lowest <= stored <= highest) == (distance <= Fraction(repr(tolerance)))


def test_doubtful_scores_at_the_very_end_of_the_tolerance():
    # 0.9 - 0.7 is 0.20000000000000007 in floating point, which would leave out 13107 / 65535 = 0.2.
    assert doubtful_scores(0.9, 0.7) == (13107, 104856)


def test_threshold_at_the_score_floor_is_asked_and_below_it_refused():
    assert len(ask(StudyConfig(vote_thresholds=(0.1,), top_class=False), score_floor=0.1)) == 10
    with pytest.raises(StudyError, match=r"vote_threshold 0\.05 lies below the vote table's score floor 0\.1"):
        ask(StudyConfig(vote_thresholds=(0.3, 0.05)), score_floor=0.1)


@pytest.mark.parametrize("views", [COLUMNS, BlockViews(image_size=(32, 32), block_size=12)])
def test_random_crops_of_other_views_are_refused(views):
    with pytest.raises(StudyError, match="certifies random crops, but the votes are those of"):
        ask(StudyConfig(**DRAWN), views)


def test_more_draws_than_views_need_replacement():
    config = StudyConfig(certificates=("random_crops_reported",), num_draws=(64, 530), replacement=("with", "without"))
    with pytest.raises(StudyError, match="530 views cannot be drawn without replacement from 529"):
        ask(config, CROPS)
    assert ask(StudyConfig(certificates=("random_crops_reported",), num_draws=(530,)), CROPS)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_draws": (64,)},
        {"replacement": ("without",)},
        {"min_confidences": (0.9,)},
        {"repeats": 3},
        {"seed": 1},
        {"num_selection": 10},
        {"num_estimation": (10,)},
    ],
)
def test_settings_of_draws_without_draws_warn(changes):
    warnings = []
    ask(StudyConfig(**changes), on_warning=warnings.append)
    assert len(warnings) == 1 and f"{next(iter(changes))} has no effect" in warnings[0]


def test_fresh_draws_hold_for_every_view_set_and_have_no_repeats():
    config = StudyConfig(certificates=("fresh_draw",), num_draws=(16,), repeats=4, patches=("5x5",))
    warnings = []
    (question,) = ask(config, on_warning=warnings.append)
    assert question.repeats == 1 and question.ballot_key == "top_class/all"
    assert question.key == "fresh_draw/5x5/top_class/all/16 with replacement/confidence>=0.95"
    assert len(warnings) == 1 and "repeats has no effect" in warnings[0]


PIXELS = SampledViews(views=PixelViews(image_size=(32, 32), num_pixels=20), num_samples=3_000, seed=4)
SAMPLED = {"certificates": ("sampled",), "num_selection": 500, "num_estimation": (2_500,), "patches": ("5x5", "9x9")}


def test_samples_of_all_votes_and_samples_that_were_voted_on_are_asked_alike():
    for views, seed in ((COLUMNS, 7), (PIXELS, 4)):
        config = StudyConfig(**SAMPLED, seed=7 if views is COLUMNS else 0)
        likely, impossible = ask(config, views, score_floor=None)
        assert likely.key == f"sampled/5x5/top_class/500+2500 with replacement,seed={seed}/confidence>=0.95"
        assert (likely.num_draws, likely.num_selection, likely.num_views) == (2_500, 500, views.num_views)
        assert likely.note == "500 samples choose the class, 2500 others estimate its share" and likely.feasible
        assert likely.affected == views.affected(likely.patch)
        assert impossible.feasible == (views is COLUMNS)
    # 81 of 1,024 pixels: 1 - C(943, 20) / C(1024, 20) = 0.81 of the views are affected, and 1.31 is no share.
    assert "infeasible: needs a share above 1.31" in impossible.note


def test_a_few_samples_prove_less_than_all_votes():
    """One of 32 columns is affected; five equal votes prove a share of 0.05 ** (1 / 5) = 0.549 only."""
    config = StudyConfig(certificates=("sampled",), patches=("1x1",), num_estimation=(5, 6))
    five, six = ask(config, BandViews(image_size=(32, 32), width=1))
    assert 0.05 ** (1 / 5) > 0.5 + 1 / 32 and five.feasible and six.feasible
    config = StudyConfig(certificates=("sampled",), patches=("1x1",), num_estimation=(4,))
    (four,) = ask(config, BandViews(image_size=(32, 32), width=1))
    assert not four.feasible and "needs a share above 0.5312, which 4 equal votes do not prove" in four.note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "counting needs the votes of all views, but only samples of them were voted on"),
        ({**SAMPLED, "certificates": ("sampled", "placement")}, "placement needs the votes of all views"),
        ({**SAMPLED, "num_estimation": (100, 2_501)}, "500 samples choose .* 2501 estimate .* but 3000 views"),
        ({"certificates": ("sampled",)}, "1000 samples .* but 3000 views of each image are sampled"),
    ],
)
def test_more_than_was_sampled_is_refused(changes, message):
    with pytest.raises(StudyError, match=message):
        ask(StudyConfig(**changes), PIXELS, score_floor=None)


def test_the_seed_of_sampled_votes_is_that_of_their_table():
    warnings = []
    ask(StudyConfig(**SAMPLED, seed=1), PIXELS, score_floor=None, on_warning=warnings.append)
    assert warnings == ["study: seed has no effect: the views were sampled with seed 4 when they were voted on."]


def test_warnings_are_never_silent_by_default():
    with pytest.warns(UserWarning, match="seed has no effect"):
        questions(StudyConfig(seed=1), COLUMNS, None)


def test_equal_patches_are_asked_once_with_a_warning():
    warnings = []
    asked = ask(StudyConfig(patches=("5x5", "2.4%")), on_warning=warnings.append)
    assert {question.patch for question in asked} == {Patch(height=5, width=5)} and len(asked) == 2
    assert "5x5 and 2.4% are both 5x5" in warnings[0]


def test_patch_larger_than_the_image_is_refused():
    with pytest.raises(GeometryError, match="33x5"):
        ask(StudyConfig(patches=("33x5",)))


def test_deterministic_infeasibility_names_the_lead_it_needs():
    # 32 columns, bands of width 4: a patch of width w touches w + 3 of them, and 2 (w + 3) > 32 from w = 14 on.
    by_patch = {question.patch.label: question for question in ask(StudyConfig(patches=("13x13", "14x14")))}
    assert by_patch["13x13"].feasible and not by_patch["13x13"].note
    assert not by_patch["14x14"].feasible
    assert by_patch["14x14"].note == "infeasible: needs a lead of 34 votes, there are 32 views"


def test_heuristics_say_so_and_infeasible_draws_name_the_lead():
    config = StudyConfig(certificates=("random_crops_reported",), patches=("5x5", "12x2"), num_draws=(128,))
    square, tall = ask(config, CROPS)
    assert square.note == "heuristic, not a theorem" and square.feasible
    # methods.md 3.3: with the published probability the 12x2 patch needs more votes than are drawn.
    assert not tall.feasible
    assert "heuristic, not a theorem; infeasible: needs a lead of " in tall.note and "128 are drawn" in tall.note


def test_headline_patch_is_the_one_asked_for_or_the_nearest_in_area():
    assert headline_patch(StudyConfig(patches=("1x1", "2x2", "6x6"), headline_patch="5x5"), (28, 28)) == "6x6"
    assert headline_patch(StudyConfig(patches=("2x8", "4x4"), headline_patch="4x4"), (28, 28)) == "4x4"
    assert headline_patch(StudyConfig(), (32, 32)) == "5x5"
    assert headline_patch(StudyConfig(patches=("2x2", "3x3"), headline_patch="2x2"), (32, 32)) == "2x2"
    assert headline_patch(StudyConfig(patches=("1%", "2%", "3%")), (224, 224)) == "32x32"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"patches": ()}, "patches is empty"),
        ({"certificates": ()}, "certificates is empty"),
        ({"patches": ("5x5", "5x5")}, "patches names 5x5 twice"),
        ({"vote_thresholds": (0.3, 0.3)}, r"vote_thresholds names 0\.3 twice"),
        ({"certificates": ("countin",)}, "unknown certificate 'countin'.\n  Did you mean 'counting'?"),
        ({"vote_thresholds": (0.0,)}, r"vote_thresholds holds 0\.0, outside \(0, 1\]"),
        ({"vote_thresholds": (float("nan"),)}, "vote_thresholds holds nan"),
        ({"score_tolerance": -0.1}, r"score_tolerance is -0\.1, outside \[0, 1\)"),
        ({"score_tolerance": 1.0}, r"score_tolerance is 1\.0, outside"),
        ({"score_tolerance": float("nan")}, "score_tolerance is nan"),
        ({**DRAWN, "min_confidences": (1.0,)}, r"min_confidences holds 1\.0, outside \(0, 1\)"),
        ({**DRAWN, "num_draws": (0,)}, "at least 1, not 0"),
        ({**DRAWN, "repeats": 0}, "at least 1, not 0"),
        ({"seed": -1}, "seed must be >= 0, not -1"),
        ({**DRAWN, "replacement": ("maybe",)}, "replacement is .*maybe"),
        ({"top_class": False}, "no view votes"),
        ({"certificates": ("random_crops_reported",)}, "draws views, but num_draws is empty"),
        ({**DRAWN, "top_class": False, "vote_thresholds": (0.3,)}, "defined for top-class votes, but top_class is off"),
        ({"certificates": ("random_crops_exact",), "num_draws": (64,)}, "differs .* only without replacement"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, match):
    with pytest.raises(StudyError, match=match):
        StudyConfig(**changes)


def test_settings_load_nothing_heavy():
    code = (
        "import sys, patchcert.studies.config; "
        "sys.exit(bool({'pandas', 'scipy', 'numpy', 'matplotlib', 'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_setting_has_a_command_line_option():
    import tyro

    words = [
        "--patches",
        "2x2",
        "2%",
        "--num-draws",
        "64",
        "--replacement",
        "with",
        "without",
        "--vote-thresholds",
        "0.3",
    ]
    config = tyro.cli(StudyConfig, args=[*words, "--certificates", "counting", "random_crops_reported"])
    assert config.patches == ("2x2", "2%") and config.replacement == ("with", "without") and config.num_draws == (64,)
