"""`python -m registry [COMMAND]`."""

from registry.commands.cli import main

main()
