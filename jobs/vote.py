"""Entry point for `ray job submit`: takes the arguments of `patchcert vote`.

ray job submit --working-dir . -- python jobs/vote.py column4-digits --work /shared/patchcert-work
"""

import sys

from patchcert.cli import main

if __name__ == "__main__":
    sys.exit(main(["vote", *sys.argv[1:]]))
