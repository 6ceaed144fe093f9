"""`python -m registry [serve|import|list|download]`."""

from registry.cli import main

main()
