"""Entry point for `ray job submit`: takes the arguments of `patchcert run`: prepare, train, vote and study in a row.

A job that was stopped or lost its driver is submitted again as it was: it continues with what is missing.

ray job submit --runtime-env jobs/runtime_env.yaml -- python jobs/pipeline.py column4-digits --work s3://bucket/work
"""

import sys

from patchcert.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
