"""Finds processes to kill: those that this test started, whatever else runs on the machine."""

import os
from pathlib import Path


def processes_named(words):
    """Process ids of this process's descendants whose title holds these words, ascending."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
            if words in title and _descends_from_us(int(folder.name)):
                found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


def _descends_from_us(process):
    while process > 1:
        if process == os.getpid():
            return True
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        process = int(fields[1])
    return False
