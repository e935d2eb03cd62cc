"""Votes and answers that somebody made up, with every digest as it would be, and what ``verify`` says of them.

All of these passed while only digests were compared.
"""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from studies import simulated
from verification import made

from patchcert.cli import main
from patchcert.errors import CheckpointError, RecipeError
from patchcert.geometry import PixelViews
from patchcert.models.checkpoint import initial_classifier
from patchcert.models.config import ClassifierConfig
from patchcert.prediction.config import PredictionConfig
from patchcert.studies.result_folders import write_frame, write_parquet
from patchcert.verification import Against, rescoring, verify
from patchcert.verification.against import NamedNetwork
from patchcert.verification.sample import sampled
from patchcert.votes import VoteTable

ROWS = sampled(np.arange(500), 64, 7).tolist()


def verified(honest, *folders, **changes):
    return list(verify([str(folder) for folder in folders], Against(**honest.against(**changes))))


def words(command, *folders, **options):
    named = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [command, *map(str, folders), *named]


def refused(honest, folder, message, **changes):
    """The one line that tells why a folder is contradicted."""
    (found,) = verified(honest, folder, **changes)
    assert found.contradicts and str(folder) in found.problem, found
    assert message in found.problem, found.problem
    return found.problem


class TestHonest:
    def test_everything_follows(self, honest, capsys):
        assert main(words("verify", honest.table.location, honest.plain.location, **honest.against())) == 0
        out, err = capsys.readouterr()
        assert out.count("scored again") == 2 and "CONTRADICTED" not in out and "--seed 7" in err

    @pytest.mark.parametrize("what", ["table", "plain", "study", "plain_study"])
    def test_what_was_compared_is_said(self, honest, what):
        thing = getattr(honest, what)
        folder = thing.location if isinstance(thing, VoteTable) else thing.folder
        (found,) = verified(honest, folder)
        assert found.problem is None
        for said in (
            f"names the model {honest.model}",
            "names and labels are those of the images",
            "64 of 500 images scored again: forgery of 5 % or more of the images would be seen with 97 %",
            "all their votes agree" if isinstance(thing, VoteTable) else "all their answers agree",
        ):
            assert said in found.checked

    def test_another_way_to_compute_is_no_forgery(self, honest, tmp_path, column_digits):
        prediction = PredictionConfig(score_floor=0.1, shortcuts=False)
        table = made.vote(tmp_path / "table", column_digits.classifier, honest.digest, honest.dataset, prediction)
        scores = [one.read_part(0).entry_scores for one in (table, honest.table)]
        assert len(scores[0]) != len(scores[1]) or (scores[0] != scores[1]).any()
        (found,) = verified(honest, table.location)
        assert found.problem is None, found.problem

    def test_studies_are_answered_again_from_a_table_beside_them(self, honest):
        found = verified(honest, honest.study.folder, honest.table.location)
        assert [item.problem for item in found] == [None, None]
        assert f"all 500 images answered again from {honest.table.location}" in found[0].checked
        (study, _) = verify([str(honest.study.folder)], Against(votes=honest.table.location))
        assert "all 500 images answered again" in study.checked

    def test_model_and_images_are_found_in_a_work_folder(self, honest):
        folder = str(Path(honest.data).parent)
        (found,) = verified(honest, honest.table.location, data=folder, checkpoint=str(honest.folder))
        assert found.problem is None and "all their votes agree" in found.checked

    def test_one_of_the_two_is_compared_alone(self, honest):
        (found,) = verify([honest.table.location], Against(data=honest.data))
        assert found.checked.endswith("names and labels are those of the images")
        (found,) = verify([honest.table.location], Against(checkpoint=honest.model))
        assert found.checked.endswith(f"names the model {honest.model}")

    def test_the_sample_is_another_one_each_time_unless_its_seed_is_given(self, honest, monkeypatch):
        said = []
        monkeypatch.setattr("secrets.randbelow", lambda most: 11)
        against = Against(**honest.against(seed=None, images=2))
        list(verify([honest.plain.location], against, say=said.append))
        assert said == ["images to score again are drawn with --seed 11"]


class TestTables:
    @pytest.mark.parametrize("what", ["table", "plain"])
    def test_every_vote_for_the_label(self, honest, what, tmp_path, capsys):
        forged = made.forged_table(tmp_path / "forged", getattr(honest, what), made.all_for_the_label)
        assert main(words("verify", forged.location)) == 0
        capsys.readouterr()
        assert main(words("verify", forged.location, **honest.against())) == 1
        out, err = capsys.readouterr()
        assert "CONTRADICTED" in out and "Traceback" not in err
        assert "votes for class" in err and "when the model scores it again" in err
        assert forged.location in err and "images scored again differ" in err

    def test_a_tenth_of_the_images(self, honest, tmp_path):
        def forge(part):
            every_tenth = np.arange(len(part.labels_N)) % 10 == 0
            best = made.all_for_the_label(part).top_classes_NV
            return dataclasses.replace(part, top_classes_NV=np.where(every_tenth[:, None], best, part.top_classes_NV))

        forged = made.forged_table(tmp_path / "forged", honest.plain, forge)
        refused(honest, forged.location, "votes for class")

    def test_scores_alone(self, honest, tmp_path):
        forged = made.forged_table(
            tmp_path / "forged",
            honest.table,
            lambda part: dataclasses.replace(part, entry_scores=np.minimum(part.entry_scores, 60_000)),
        )
        refused(honest, forged.location, "when the model scores it again")

    def test_scores_that_are_left_out(self, honest, tmp_path):
        forged = made.forged_table(
            tmp_path / "forged",
            honest.table,
            lambda part: dataclasses.replace(
                part,
                num_entries_NV=np.zeros_like(part.num_entries_NV),
                entry_classes=part.entry_classes[:0],
                entry_scores=part.entry_scores[:0],
            ),
        )
        refused(honest, forged.location, "has score below 0.1 for class")

    def test_a_label(self, honest, tmp_path):
        def forge(part):
            return dataclasses.replace(part, labels_N=np.where(part.image_ids == name, wrong, part.labels_N))

        part = honest.table.read_part(1)
        name, right = part.image_ids[3], int(part.labels_N[3])
        wrong = (right + 1) % 10
        forged = made.forged_table(tmp_path / "forged", honest.table, forge)
        message = f"image {str(name)!r} has label {wrong}, but {right} in {honest.data}"
        refused(honest, forged.location, message, checkpoint=None, seed=None)

    def test_images_in_another_order(self, honest, tmp_path):
        def forge(part):
            image_ids = part.image_ids.copy()
            image_ids[[0, 1]] = image_ids[[1, 0]]
            return dataclasses.replace(part, image_ids=image_ids)

        forged = made.forged_table(tmp_path / "forged", honest.plain, forge)
        refused(honest, forged.location, "row 0 is image", checkpoint=None, seed=None)

    def test_another_model(self, honest, tmp_path, column_digits):
        other = initial_classifier(column_digits.classifier.config, honest.table.views, 1, 10, seed=1)
        digest = made.save_model(tmp_path / "other", other, honest.dataset)
        message = f"the model with digest {honest.digest[:12]} voted, but {tmp_path / 'other'} has digest {digest[:12]}"
        refused(honest, honest.table.location, message, checkpoint=str(tmp_path / "other"))

    def test_other_images(self, honest, prepared_digits):
        other = prepared_digits["validation"]
        message = f"digest {honest.dataset.digest[:12]}, but {other.folder.path()} holds digits/validation"
        refused(honest, honest.table.location, message, data=other.folder.path())

    def test_other_names_of_classes(self, honest, tmp_path, column_digits):
        names = [*honest.dataset.class_names]
        names[2], names[3] = names[3], names[2]
        made.save_model(tmp_path / "model", column_digits.classifier, honest.dataset, class_names=names)
        message = "was trained on the same classes in another order than the images have: label 2 is"
        refused(honest, honest.table.location, message, checkpoint=str(tmp_path / "model"))

    def test_a_class_that_does_not_exist_is_damage(self, honest, tmp_path):
        with pytest.raises(Exception, match="a view votes for class 4000 of 10"):
            forged = made.forged_table(
                tmp_path / "forged",
                honest.plain,
                lambda part: dataclasses.replace(part, top_classes_NV=np.full_like(part.top_classes_NV, 4000)),
            )
            forged.read_part(0)

    def test_a_vote_between_equal_scores_is_no_forgery_and_is_counted(self, honest, tmp_path, monkeypatch):
        """Votes for the second best class of nearly equal scores: forged, or what a wider tolerance would explain."""
        votes = honest.table.read_part(0).stored_scores()
        second_NV = np.argsort(votes, axis=2)[:, :, -2].astype(np.uint16)
        close_NV = np.diff(np.sort(votes, axis=2)[:, :, -2:], axis=2)[:, :, 0] < 2000

        def forge(part):
            if part.first_row:
                return part
            return dataclasses.replace(part, top_classes_NV=np.where(close_NV, second_NV, part.top_classes_NV))

        forged = made.forged_table(tmp_path / "forged", honest.plain, forge)
        refused(honest, forged.location, "votes for class", images=500)
        monkeypatch.setitem(rescoring.TOLERANCES, "float32", 0.02)
        (found,) = verified(honest, forged.location, images=500)
        assert found.problem is None
        assert f"{int(close_NV.sum()):,} of 16,000 after a change of scores within 0.02" in found.checked


class TestStudies:
    @pytest.mark.parametrize("beside", [False, True], ids=["alone", "with its table"])
    @pytest.mark.parametrize("what", ["study", "plain_study"])
    def test_every_image_certified(self, honest, what, beside, tmp_path, capsys):
        table = honest.table if what == "study" else honest.plain
        config = made.STUDY if what == "study" else made.PLAIN_STUDY
        per_image = made.certified_everywhere(getattr(honest, what).per_image())
        forged = made.study(tmp_path / "forged", table, config, per_image)
        assert forged.answers["certified_accuracy"].min() == 1
        assert main(words("verify", forged.folder)) == 0
        capsys.readouterr()
        folders = [forged.folder, *([table.location] if beside else [])]
        assert main(words("verify", *folders, **({} if beside else honest.against()))) == 1
        out, err = capsys.readouterr()
        assert "CONTRADICTED" in out and str(forged.folder) in err
        assert ("of image '" in err and " is True, but False " in err) or " is " in err
        assert (f"by the votes of {table.location}" if beside else "when the model scores it again") in err

    @pytest.mark.parametrize(
        "column",
        ["certified/counting/5x5/top_class/all", "confidence/fresh_draw/5x5/top_class/all/16 with replacement"],
    )
    def test_one_column_of_one_image(self, honest, column, tmp_path):
        per_image = honest.plain_study.per_image()
        values = np.array(per_image[column].to_pylist())
        index = next(row for row in ROWS if values[row] < 0.5)
        values[index] = True if values.dtype == bool else 0.999
        forged = made.study(
            tmp_path / "forged", honest.plain, made.PLAIN_STUDY, made.changed(per_image, **{column: values})
        )
        name = per_image["image_id"][index].as_py()
        refused(honest, forged.folder, f"{column} of image {name!r} is {values[index]}, but ")
        found = verified(honest, forged.folder, honest.plain.location)[0]
        assert found.contradicts and f"{column} of image {name!r} is {values[index]}, but " in found.problem

    def test_a_label(self, honest, tmp_path):
        per_image = honest.plain_study.per_image()
        labels_N = np.array(per_image["label"].to_pylist())
        labels_N[9] = (labels_N[9] + 1) % 10
        forged = made.study(
            tmp_path / "forged", honest.plain, made.PLAIN_STUDY, made.changed(per_image, label=labels_N)
        )
        refused(honest, forged.folder, f"has label {labels_N[9]}, but", checkpoint=None, seed=None)

    def test_a_column_more(self, honest, tmp_path):
        copy = made.copied(honest.plain_study.folder, tmp_path / "study")
        table = honest.plain_study.per_image().append_column("certified/faith", pa.array([True] * 500))
        write_parquet(copy / "per_image.parquet", table)
        made.reseal_study(copy)
        refused(honest, copy, "it has a column certified/faith, but its questions and votes give none")

    def test_another_subject_than_the_votes(self, honest, tmp_path):
        copy = made.copied(honest.plain_study.folder, tmp_path / "study")
        subject = dataclasses.asdict(honest.plain_study.subject) | {"model_digest": "ab" * 32}
        made.reseal_study(copy, subject=subject)
        refused(honest, copy, f"model_digest of the study is {'ab' * 32!r}, but {honest.digest!r}")

    def test_votes_that_nobody_knows(self, honest, tmp_path):
        forged = made.study(tmp_path / "study", honest.plain, made.PLAIN_STUDY, votes={"model": "x"})
        refused(honest, forged.folder, "those of no vote table")

    def test_the_table_of_another_study(self, honest):
        (found, _) = verify([str(honest.study.folder)], Against(votes=honest.plain.location))
        assert found.contradicts and "votes.votes.rule is 'threshold', but 'top_class' in" in found.problem

    def test_a_place_where_nothing_fails(self, honest, tmp_path):
        copy = made.copied(honest.plain_study.folder, tmp_path / "study")
        write_frame(copy / "placements.parquet", honest.plain_study.placements().assign(images=0))
        made.reseal_study(copy)
        (found, _) = verified(honest, copy, honest.plain.location)
        assert found.contradicts and "placements.parquet does not follow from the votes of" in found.problem


class TestVarianceStudies:
    def test_repeats_of_other_votes(self, tmp_path):
        folder = made.variance_study(tmp_path)
        table = VoteTable.open(tmp_path / "table")
        (found, _) = verify([str(folder), table.location])
        assert found.problem is None and f"all 40 images answered again from {table.location}" in found.checked
        parts = simulated.simulated_part(table.views, 40, num_classes=4, seed=5)
        forged = made.variance_of(tmp_path / "forged", table, made.all_for_the_label(parts))
        (found, _) = verify([str(forged), table.location])
        assert found.contradicts and "of image '00000' is 1.0, but 0." in found.problem


class TestTies:
    """Where votes hang on the tolerance of scores, a study may claim less, and no more than they could give."""

    @pytest.fixture
    def wide(self, monkeypatch):
        monkeypatch.setitem(rescoring.TOLERANCES, "float32", 0.005)

    def test_less_is_accepted_and_more_is_not(self, honest, tmp_path, wide):
        column = "certified/placement/5x5/top_class/all"
        per_image = honest.plain_study.per_image()
        best_two_NV2 = np.concatenate(
            [np.sort(honest.table.read_part(index).stored_scores(), axis=2)[:, :, -2:] for index in range(3)]
        )
        is_close_N = (np.diff(best_two_NV2.astype(int), axis=2) <= 2 * 0.005 * 65535).any(axis=(1, 2))

        def image(truth, close):
            return next(row for row in ROWS if per_image[column][row].as_py() is truth and is_close_N[row] == close)

        for close, truth, accepted in ((True, True, True), (False, True, False), (True, False, False)):
            values = np.array(per_image[column].to_pylist())
            values[image(truth, close)] = not truth
            changed = made.changed(per_image, **{column: values})
            forged = made.study(tmp_path / f"{close} {truth}", honest.plain, made.PLAIN_STUDY, changed)
            if not accepted:
                refused(honest, forged.folder, column)
                continue
            (found,) = verified(honest, forged.folder)
            assert found.checked.endswith("agree, 1 of them but for votes that hang on the rounding of scores")

    def test_the_answers_of_a_model_that_rounds_otherwise(self, honest, tmp_path, wide):
        """Every close vote falls the other way: the study differs from the model's in hundreds of values."""
        scores = honest.table.read_part(0).stored_scores()
        order_NVK = np.argsort(scores, axis=2)
        close_NV = np.diff(np.take_along_axis(scores, order_NVK[:, :, -2:], axis=2), axis=2)[:, :, 0] <= 400

        def other(part):
            if part.first_row:
                return part
            second_NV = order_NVK[:, :, -2].astype(np.uint16)
            return dataclasses.replace(part, top_classes_NV=np.where(close_NV, second_NV, part.top_classes_NV))

        rounded = made.forged_table(tmp_path / "table", honest.plain, other)
        study = made.study(tmp_path / "study", rounded, made.PLAIN_STUDY)
        assert not study.per_image().equals(honest.plain_study.per_image())
        (found,) = verified(honest, study.folder, images=150)
        assert found.problem is None, found.problem
        assert "of them but for votes that hang on the rounding of scores" in found.checked


class TestCommand:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"images": 0}, "images is 0; a sample has at least 1"),
            ({"seed": -1}, "seed is -1"),
            ({"data": None}, "--seed 7 has no effect"),
            ({"checkpoint": None}, "--seed 7 has no effect"),
            ({"checkpoint": None, "seed": None, "images": 3}, "--images 3 has no effect"),
        ],
    )
    def test_settings_without_effect_are_refused(self, honest, changes, message):
        with pytest.raises(RecipeError, match=message):
            Against(**honest.against(**changes))

    @pytest.mark.parametrize("option", ["data", "checkpoint", "votes"])
    def test_nothing_to_compare_is_an_error(self, honest, option):
        place = (
            honest.table.location if option == "votes" else getattr(honest, {"checkpoint": "model"}.get(option, option))
        )
        with pytest.raises(RecipeError, match=f"--{option} .* has no effect, because no"):
            list(verify([honest.model], Against(**{option: place})))

    def test_a_damaged_model_or_image_ends_the_command(self, honest, tmp_path, capsys):
        model = made.copied(honest.model, tmp_path / "model")
        (weights,) = model.glob("*.safetensors")
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        assert main(words("verify", honest.table.location, **honest.against(checkpoint=model))) == 2
        assert "was changed after it was written" in capsys.readouterr().err

    def test_code_that_a_checkpoint_names_runs_only_when_the_user_names_it(self, honest, tmp_path, monkeypatch):
        marker = tmp_path / "imported"
        (tmp_path / "strangers_network.py").write_text(
            "import pathlib\nfrom torch import nn\n"
            f"pathlib.Path({str(marker)!r}).touch()\n"
            "def make(channels, view_size, num_classes):\n"
            "    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, num_classes))\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        config = ClassifierConfig(network="strangers_network:make")
        classifier = initial_classifier(config, honest.table.views, 1, 10, seed=0).eval()
        digest = made.save_model(tmp_path / "model", classifier, honest.dataset)
        table = made.vote(tmp_path / "table", classifier, digest, honest.dataset)
        marker.unlink()
        monkeypatch.delitem(sys.modules, "strangers_network")
        with pytest.raises(CheckpointError, match=r"--classifier\.network strangers_network:make"):
            verified(honest, table.location, checkpoint=str(tmp_path / "model"))
        assert not marker.exists()
        named = NamedNetwork(network="strangers_network:make")
        (found,) = verified(honest, table.location, checkpoint=str(tmp_path / "model"), classifier=named)
        assert found.problem is None and marker.exists()
        with pytest.raises(CheckpointError, match=r"but --classifier\.network is"):
            verified(honest, honest.table.location, classifier=named)

    def test_neither_ray_nor_mlflow_is_loaded(self, honest):
        program = (
            "import sys\nfrom patchcert.cli import main\n"
            f"assert main({words('verify', honest.plain.location, images=4, **honest.against())!r}) == 0\n"
            "assert not {'ray', 'mlflow'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_pixels_that_are_sampled_are_drawn_again(honest, tmp_path):
    """Random pixels are drawn by the row of an image, whatever sample it is scored in."""

    views = PixelViews(image_size=(32, 32), num_pixels=40)
    config = ClassifierConfig(network="drs-mnist-cnn", width=0.25)
    classifier = initial_classifier(config, views, 1, 10, seed=0).eval()
    digest = made.save_model(tmp_path / "model", classifier, honest.dataset)
    prediction = PredictionConfig(num_samples=6, sample_seed=3, score_floor=0)
    table = made.vote(tmp_path / "table", classifier, digest, honest.dataset, prediction)
    changes = {"checkpoint": str(tmp_path / "model"), "images": 20}
    (found,) = verified(honest, table.location, **changes)
    assert found.problem is None and found.checked.endswith("all their votes agree")
    forged = made.forged_table(tmp_path / "forged", table, made.all_for_the_label)
    refused(honest, forged.location, "votes for class", **changes)


def test_nothing_is_left_behind(honest, tmp_path):
    copy = made.copied(honest.table.location, tmp_path / "table")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    verified(honest, copy)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    shutil.rmtree(copy)
