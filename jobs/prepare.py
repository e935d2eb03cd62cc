"""Entry point for `ray job submit`: takes the arguments of `patchcert prepare`.

ray job submit --working-dir . -- python jobs/prepare.py column4-digits --work /shared/patchcert-work
"""

import sys

from patchcert.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
