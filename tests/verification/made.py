"""Vote tables and studies of a real model over real images, and what a careful forger would make of them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from records import reseal
from studies import simulated

from patchcert.data.sealed import digest_of
from patchcert.data.storage import Folder
from patchcert.geometry import CropViews
from patchcert.models.checkpoint import save_checkpoint
from patchcert.prediction.config import PredictionConfig
from patchcert.prediction.scoring import ViewScorer
from patchcert.studies import StudyConfig, Subject, answer_part
from patchcert.studies.answering import per_image_table, placement_failures, summarise
from patchcert.studies.config import VarianceConfig
from patchcert.studies.questions import headline_patch, questions
from patchcert.studies.result_folders import result_id
from patchcert.studies.results import SUMMARY, StudyResult, write_summary, write_tables
from patchcert.studies.variance import VarianceAccumulator, draw_part, draw_questions
from patchcert.studies.variance_results import write_variance
from patchcert.votes import VotePart
from patchcert.votes.identity import vote_identity
from patchcert.votes.table import finish_table, part_name, write_part

STUDY = StudyConfig(
    patches=("2x2", "5x5"),
    certificates=("counting", "placement", "fresh_draw"),
    vote_thresholds=(0.3,),
    num_draws=(16,),
)
PLAIN_STUDY = dataclasses.replace(STUDY, vote_thresholds=())


def save_model(folder, classifier, dataset, **provenance):
    names = {"class_names": list(dataset.class_names)}
    return save_checkpoint(classifier, Folder(folder), {"recipe": "column4-digits", **names, **provenance})


def vote(folder, classifier, digest, dataset, prediction=None, *, images_per_part=200):
    """A finished table, scored by the one scoring path."""
    prediction = prediction or PredictionConfig(score_floor=0.1)
    identity = vote_identity(
        prediction.voted_views(classifier.views),
        dataset,
        model_digest=digest,
        score_floor=prediction.score_floor,
        precision=prediction.precision,
    )
    scorer = ViewScorer(classifier, prediction, torch.device("cpu"))
    borders = dataset.parts(images_per_part)
    for index, (start, stop) in enumerate(borders):
        batch = dataset.read(start, stop)
        scored = scorer.score(batch.images_NHWC, first_row=start)
        part = VotePart(
            image_ids=batch.image_ids,
            labels_N=batch.labels_N,
            num_classes=dataset.num_classes,
            score_floor=prediction.score_floor or None,
            first_row=start,
            **{field.name: getattr(scored, field.name) for field in dataclasses.fields(scored)},
        )
        write_part(Folder(folder), part_name(index, len(borders)), identity, start, part)
    return finish_table(Folder(folder), identity, borders)


def study(folder, table, config=STUDY, per_image=None, **identity):
    """A study of a table without its figures and report, which take longer than all the rest."""
    asked = questions(config, table.views, table.score_floor)
    parts = [answer_part(table.read_part(index), table.views, asked) for index in range(table.num_parts)]
    subject = Subject.of_table(table, "column4-digits")
    per_image = per_image or per_image_table(parts)
    identity = json.loads(json.dumps({"study": dataclasses.asdict(config), "votes": table.identity} | identity))
    result = StudyResult(
        folder=Folder(folder),
        subject=subject,
        identity=identity,
        result_id=result_id(identity),
        headline_patch=headline_patch(config, subject.image_size),
        answers=summarise(per_image, asked, subject),
        run={},
    )
    Path(folder).mkdir(parents=True)
    write_tables(Path(folder), result, per_image, placement_failures(parts, asked, subject.image_size))
    write_summary(Path(folder), result)
    return StudyResult.open(folder)


VARIANCE = VarianceConfig(repeats=20, num_draws=(16,), patches=("1x1", "2x2"), min_confidence=0.8)


def variance_study(folder):
    """A small variance study, beside the imagined votes that it was drawn from; returns its folder."""
    views = CropViews(image_size=(12, 12), crop_size=4)
    part = simulated.simulated_part(views, 40, num_classes=4, seed=5)
    table = simulated.write_table(f"{folder}/table", views, part, [(0, 25), (25, 40)])
    return variance_of(f"{folder}/study", table, part)


def variance_of(folder, table, part):
    """Draws from votes that a table need not hold."""
    accumulator = VarianceAccumulator(asked := draw_questions(VARIANCE, table.views))
    accumulator.add(draw_part(part, VARIANCE, asked))
    subject = Subject.of_table(table, "crop4-test")
    identity = {"variance": dataclasses.asdict(VARIANCE), "votes": table.identity}
    tables = accumulator.tables(subject)
    write_variance(folder, subject=subject, headline_patch="1x1", tables=tables, identity=identity, run={})
    return Path(folder)


def forged_table(folder, table, forge):
    """The table with other votes and with digests that fit them."""
    folder = Folder(folder)
    for index, (start, _) in enumerate(table.part_rows):
        write_part(folder, part_name(index, table.num_parts), table.identity, start, forge(table.read_part(index)))
    return finish_table(folder, table.identity, table.part_rows)


def all_for_the_label(part):
    """Every view votes for the label, with the highest score there is."""
    classes_NV = np.repeat(part.labels_N[:, None], part.top_classes_NV.shape[1], axis=1).astype(np.uint16)
    scores = {}
    if part.score_floor is not None:
        scores = {
            "num_entries_NV": np.ones_like(classes_NV),
            "entry_classes": classes_NV.ravel(),
            "entry_scores": np.full(classes_NV.size, 65535, dtype=np.uint16),
        }
    return dataclasses.replace(part, top_classes_NV=classes_NV, **scores)


def changed(per_image, **columns):
    """Answers of images with other values in some columns: name -> values, or one for all images."""
    frame = per_image.to_pandas()
    for name, values in columns.items():
        frame[name] = values
    return pa.Table.from_pandas(frame, schema=per_image.schema, preserve_index=False)


def certified_everywhere(per_image):
    """Every image is predicted right and certified against everything."""
    names = per_image.column_names
    columns = {name: True for name in names if name.startswith("certified/")}
    columns |= {name: per_image["label"].to_numpy() for name in names if name.startswith("prediction/")}
    columns |= {name: np.int32(30) for name in names if name.startswith("margin/")}
    return changed(per_image, **columns)


def copied(source, target):
    shutil.copytree(Folder(source).path(), target)
    return target


def reseal_study(folder, **values):
    """Writes the record of a study anew, with the digests that its files have now."""

    def change(record):
        record["files"] = {name: digest_of(Path(folder, name).read_bytes()) for name in record["files"]}

    reseal(Path(folder, SUMMARY), change, **values)
