import os
import shutil

import numpy as np
import pandas as pd
import pytest
from studies import simulated

from patchcert.data.storage import Folder
from patchcert.errors import ResourceError, StudyError
from patchcert.studies import StudyConfig, StudyResult, write_report


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_result_comes_back_as_it_was_written(results, column_study):
    opened = StudyResult.open(results[0].folder)
    pd.testing.assert_frame_equal(opened.answers, results[0].answers)
    assert opened.subject == column_study.subject
    assert (opened.result_id, opened.headline_patch) == (results[0].result_id, "5x5")
    assert opened.identity == results[0].identity and opened.run == results[0].run
    assert {path.suffix for path in opened.figures} == {".png", ".svg"}
    from_csv = pd.read_csv(results[0].folder / "answers.csv", keep_default_na=False, na_values={"vote_threshold": ""})
    np.testing.assert_array_equal(from_csv["certified_accuracy"], opened.answers["certified_accuracy"])


def test_per_image_rows_give_the_answers_again_and_stay_small(results, crop_study):
    per_image = results[1].per_image()
    assert per_image.num_rows == 300 and per_image["image_id"][0].as_py() == "00000"
    correct_N = np.asarray(per_image["prediction/top_class/all"]) == np.asarray(per_image["label"])
    certified_N = np.asarray(per_image["certified/placement/5x5/top_class/all"])
    row = results[1].answers.query("certificate == 'placement' and patch == '5x5'").iloc[0]
    assert row["certified_accuracy"] == (correct_N & certified_N).mean()
    assert (results[1].folder / "per_image.parquet").stat().st_size < 5 * 300 * len(crop_study.asked)


def test_equal_input_gives_equal_bytes_but_for_run_json(tmp_path, column_study, results):
    again = simulated.write(column_study, tmp_path / "again", run=results[0].run)
    first, second = contents(results[0].folder), contents(again.folder)
    assert first == second
    other = simulated.write(column_study, tmp_path / "other", run={"study_seconds": 99})
    changed = {name for name, data in contents(other.folder).items() if first[name] != data}
    assert changed == {"run.json", "report.html", "report.md"}, "only what shows the run"


def test_result_id_follows_everything_that_can_change_an_answer(tmp_path, column_study, results):
    changed = simulated.write(column_study, tmp_path / "a", identity=results[0].identity | {"code": "another commit"})
    assert changed.result_id != results[0].result_id and len(changed.result_id) == 16


def test_nothing_is_left_of_a_write_that_fails(tmp_path, column_study):
    with pytest.raises(StudyError, match=r"hold 600 images \(300 different ones\)"):
        simulated.write(column_study, tmp_path / "study", parts=column_study.parts * 2)
    with pytest.raises(TypeError):
        simulated.write(column_study, tmp_path / "study", run={"not": object()})
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_older_result(tmp_path, column_study):
    folder = simulated.write(column_study, tmp_path / "study").folder
    before = contents(folder)
    with pytest.raises(TypeError):
        simulated.write(column_study, folder, run={"not": object()})
    assert contents(folder) == before and os.listdir(tmp_path) == ["study"]


def test_an_older_result_is_replaced_and_strangers_are_left_alone(tmp_path, column_study, crop_study):
    folder = simulated.write(column_study, tmp_path / "study").folder
    simulated.write(crop_study, folder)
    assert StudyResult.open(folder).subject.defense == "crop10-cifar10" and os.listdir(tmp_path) == ["study"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(StudyError, match=r"photos exists and was not written by patchcert \(no summary.json in it\)"):
        simulated.write(column_study, tmp_path / "photos")
    assert os.listdir(tmp_path / "photos") == ["cat.jpg"]


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path, column_study):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"cannot write .*file/study"):
        simulated.write(column_study, tmp_path / "file" / "study")


def test_object_stores_are_refused(column_study):
    with pytest.raises(StudyError, match="on an object store"):
        simulated.write(column_study, Folder("s3://bucket/study?region=eu-west-1"))


def test_missing_and_damaged_results_name_the_mend(tmp_path, results):
    with pytest.raises(StudyError, match=r"holds no study result: summary.json is missing.\n  Answer the study again"):
        StudyResult.open(tmp_path / "nothing")

    def damaged(name, change):
        folder = tmp_path / name
        shutil.copytree(results[0].folder, folder)
        change(folder)
        return folder

    def shorten(folder):
        (folder / "answers.parquet").write_bytes((folder / "answers.parquet").read_bytes()[:-9])

    def rename_version(folder):
        text = (folder / "summary.json").read_text().replace('"schema_version": 1', '"schema_version": 9')
        (folder / "summary.json").write_text(text)

    with pytest.raises(StudyError, match=r"is damaged: ValueError: answers.parquet has digest"):
        StudyResult.open(damaged("short", shorten))
    with pytest.raises(StudyError, match="is damaged: FileNotFoundError"):
        StudyResult.open(damaged("gone", lambda folder: (folder / "per_image.parquet").unlink()))
    with pytest.raises(StudyError, match="is damaged: JSONDecodeError"):
        StudyResult.open(damaged("cut", lambda folder: (folder / "summary.json").write_text("{")))
    with pytest.raises(StudyError, match="is damaged: KeyError"):
        StudyResult.open(damaged("empty", lambda folder: (folder / "summary.json").write_text("{}")))
    with pytest.raises(StudyError, match="has result version 9, this version reads 1"):
        StudyResult.open(damaged("later", rename_version))


def test_headline_patch_is_the_one_the_study_names(tmp_path, column_study):
    config = StudyConfig(**{**vars(column_study.config), "headline_patch": "2x2"})
    assert simulated.write(column_study, tmp_path / "study", config=config).headline_patch == "2x2"


def test_report_over_one_study_twice_is_refused(tmp_path, results):
    with pytest.raises(StudyError, match="column4-cifar10 is named twice for the same images"):
        write_report(tmp_path / "report", [results[0], results[0]])
    with pytest.raises(StudyError, match="at least one study, not 0"):
        write_report(tmp_path / "report", [])
