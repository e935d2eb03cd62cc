"""Images as Arrow rows: datasets, readers, preparation, digests. Configuration in, prepared image folders out."""

from patchcert.data.config import DataConfig
from patchcert.data.preparation import prepare
from patchcert.data.prepared import ImageBatch, PreparedDataset, Shard
from patchcert.data.registry import DatasetSpec, dataset_names, dataset_spec, register_dataset
from patchcert.data.storage import Folder, atomic_write

__all__ = [
    "DataConfig",
    "DatasetSpec",
    "Folder",
    "ImageBatch",
    "PreparedDataset",
    "Shard",
    "atomic_write",
    "dataset_names",
    "dataset_spec",
    "prepare",
    "register_dataset",
]
