"""What a check found, one line each: how it stands, what was looked at, what was seen, and how to mend it.

Written with tabs between the four, for scripts/doctor.sh and for people alike.
"""

from dataclasses import dataclass
from typing import Literal, TextIO


@dataclass(frozen=True)
class Finding:
    """The result of one check. `mend` says what to do about a problem."""

    status: Literal["ok", "warning", "problem"]
    subject: str
    detail: str
    mend: str = ""

    def write(self, stream: TextIO) -> None:
        """Write the line; whatever would break it becomes a space."""
        fields = (self.status, self.subject, self.detail, self.mend)
        stream.write("\t".join(" ".join(field.split()) for field in fields) + "\n")
        stream.flush()
