"""`python -m registry [COMMAND]`."""

from registry.cli import main

main()
