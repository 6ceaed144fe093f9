"""Result of a readiness check, one line each, tab-separated for scripts/doctor.sh: status, subject, detail, fix."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NoReturn


@dataclass(frozen=True)
class Finding:
    """The result of one check. `fix` says how to fix a problem."""

    status: Literal["ok", "warning", "problem"]
    subject: str
    detail: str
    fix: str = ""


def report(findings: Iterable[Finding]) -> NoReturn:
    """Write a line per finding, tabs and newlines in a field as spaces; exits with 1 if one is a problem."""
    code = 0
    for finding in findings:
        fields = (finding.status, finding.subject, finding.detail, finding.fix)
        sys.stdout.write("\t".join(" ".join(field.split()) for field in fields) + "\n")
        sys.stdout.flush()
        code |= finding.status == "problem"
    raise SystemExit(code)
