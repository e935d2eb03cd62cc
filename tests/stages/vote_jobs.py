"""What the tests of the vote stage share: digests of tables, jobs of workers."""

import hashlib
import os


def digests(table):
    """sha256 of every file that belongs to a vote table."""
    names = [name for name in sorted(os.listdir(table.location)) if name.startswith(("part-", "_SUCCESS"))]
    return {name: hashlib.sha256(open(os.path.join(table.location, name), "rb").read()).hexdigest() for name in names}


def job_of(recipe, prepared, model_folder, table_folder):
    """The job of the actors that vote on the test split in parts of 20, writing into a folder."""
    from patchcert.models.checkpoint import read_checkpoint_config
    from patchcert.stages.vote_worker import VoteJob
    from patchcert.votes.identity import vote_identity

    dataset, digest = prepared["test"], read_checkpoint_config(model_folder)["digest"]
    identity = vote_identity(
        recipe.voted_views,
        dataset,
        model_digest=digest,
        score_floor=recipe.prediction.score_floor,
        precision=recipe.prediction.precision,
    )
    return VoteJob(
        identity=identity,
        table_folder=str(table_folder),
        dataset_folder=str(dataset.folder),
        model_folder=str(model_folder),
        model_digest=digest,
        classifier=recipe.classifier,
        views=recipe.views,
        prediction=recipe.prediction,
        num_parts=len(dataset.parts(20)),
        num_threads=1,
        device="cpu",
    )
