"""The commands of docs/quick-reference.md, as a reader would copy them."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "quick-reference.md"


def statements() -> list[str]:
    """Every command of the bash blocks once, in order, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    return list(dict.fromkeys(statement for block in blocks for statement in _statements(block)))


def without_watch(statement: str) -> str:
    """Of `watch -n 2 'COMMAND'`, the command that it repeats; any other statement as it is."""
    watched = re.fullmatch(r"watch -n \d+ '(.*)'", statement, flags=re.DOTALL)
    return watched[1] if watched else statement


def curl_commands() -> list[str]:
    """The curl commands, those that `watch` repeats among them; what deletes a model goes last."""
    found = [without_watch(statement) for statement in statements()]
    unique = dict.fromkeys(command for command in found if command.startswith("curl"))
    return sorted(unique, key=lambda command: "DELETE" in command)


def _statements(block: str) -> list[str]:
    """The statements of a shell block: a quote or a backslash at a line's end carries on to the next."""
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
