"""Records as somebody would change them who also writes their digests anew."""

import json

from patchcert.data.sealed import sealed_bytes


def reseal(path, change=None, **values):
    """Rewrites a sealed JSON file; ``change`` edits the record in place, ``values`` replace what it says."""
    record = json.loads(path.read_text())
    del record["sha256"]
    if change is not None:
        change(record)
    path.write_bytes(sealed_bytes(record | values))
