"""The commands of docs/quick-reference.md, as a reader would copy them."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "quick-reference.md"


def statements() -> list[str]:
    """Return every command of the bash blocks once, in order, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    return list(dict.fromkeys(statement for block in blocks for statement in _statements(block)))


def without_watch(statement: str) -> str:
    """Return the command that `watch -n 2 'COMMAND'` repeats; any other statement unchanged."""
    watched = re.fullmatch(r"watch -n \d+ '(.*)'", statement, flags=re.DOTALL)
    return watched[1] if watched else statement


def curl_commands() -> list[str]:
    """Return the curl commands, including those in `watch`; the deletion of a model comes last."""
    found = [without_watch(statement) for statement in statements()]
    unique = dict.fromkeys(command for command in found if command.startswith("curl"))
    return sorted(unique, key=lambda command: "DELETE" in command)


def _statements(block: str) -> list[str]:
    """Split a shell block into statements: a quote or a backslash at a line's end continues on the next."""
    found: list[str] = []
    open_statement = ""
    for line in block.splitlines():
        if not open_statement and (not line.strip() or line.lstrip().startswith("#")):
            continue
        open_statement += line
        if line.endswith("\\") or open_statement.count("'") % 2:
            open_statement += "\n"
            continue
        found.append(open_statement.strip())
        open_statement = ""
    return found
