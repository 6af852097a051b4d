"""The front door: ``python run.py dtype=bf16 batch=12``; see ``python run.py --help``."""

import sys

from bert_infer.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python run.py"))
