"""Result of a readiness check, one line each, tab-separated for scripts/doctor.sh: status, subject, detail, fix."""

from dataclasses import dataclass
from typing import Literal, TextIO


@dataclass(frozen=True)
class Finding:
    """The result of one check. `fix` says how to fix a problem."""

    status: Literal["ok", "warning", "problem"]
    subject: str
    detail: str
    fix: str = ""

    def write(self, stream: TextIO) -> None:
        """Write the line; tabs and newlines in a field become spaces."""
        fields = (self.status, self.subject, self.detail, self.fix)
        stream.write("\t".join(" ".join(field.split()) for field in fields) + "\n")
        stream.flush()
