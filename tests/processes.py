"""Finds processes to kill: those that this test started, whatever else runs on the machine."""

import os
from pathlib import Path


def processes_named(words, ancestor=None):
    """Process ids of the descendants of a process, else of this one, whose title holds these words, ascending."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
            if words in title and _descends(int(folder.name), ancestor or os.getpid()):
                found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


def _descends(process, ancestor):
    while process > 1:
        if process == ancestor:
            return True
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        process = int(fields[1])
    return False
