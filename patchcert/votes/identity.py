"""Views, scoring, images and model in, the identity of the vote table they make out."""

from typing import Any

from patchcert.data.prepared import PreparedDataset
from patchcert.geometry import ViewSet
from patchcert.votes.table import SCHEMA_VERSION, Identity


def vote_identity(
    views: ViewSet, dataset: PreparedDataset, *, model_digest: str, score_floor: float, precision: str
) -> Identity:
    """Everything that can change a vote, as JSON values.

    Args:
        views: view set.
        dataset: prepared split.
        model_digest: digest of the checkpoint (network, encoding, weights, view set, classes).
        score_floor: lowest stored score; 0 when only top classes are stored.
        precision: arithmetic of the network.
    """
    dataset_identity: dict[str, Any] = {
        "name": dataset.name,
        "variant": dataset.variant,
        "split": dataset.split,
        "digest": dataset.digest,
        "num_images": dataset.num_rows,
        "num_quarantined": dataset.num_quarantined,
        "image_size": list(dataset.image_size),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "views": views.identity(),
        "votes": {
            "rule": "threshold" if score_floor else "top_class",
            "score_floor": float(score_floor),
            "precision": precision,
        },
        "model": model_digest,
        "num_classes": dataset.num_classes,
        "dataset": dataset_identity,
        "preprocessing": dataset.preprocessing,
    }
