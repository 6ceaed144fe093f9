"""`python -m bench.backend`: the fake OpenAI backend as a program, with its faults as options. `--help` lists them."""

import sys

from tests.support.backends.openai_backend import main

if __name__ == "__main__":
    main(sys.argv[1:])
