"""Prepares a few images many times on one embedded Ray and counts: a script, because Ray may end its process."""

import sys
import tempfile

from patchcert.data import DataConfig, prepare
from patchcert.stages.cluster import connected
from patchcert.stages.prepare import on_cluster
from patchcert.stages.resources import Resources

if __name__ == "__main__":
    config = DataConfig(limit=6, rows_per_group=3, rows_per_shard=3)
    with connected(Resources()) as ray:
        # A cluster this process has joined, so that every preparation uses the same one.
        for number in range(int(sys.argv[1])):
            with tempfile.TemporaryDirectory() as folder:
                prepare(config, None, folder, splits=["train"], spread=on_cluster(Resources()))
            print(number + 1, flush=True)
