"""Checks what lies in folders: against its digests, against the images it names, and against the model that made it."""

from patchcert.verification.against import Against
from patchcert.verification.run import Verified, verify

__all__ = ["Against", "Verified", "verify"]
