"""``python -m bert_infer`` is ``bert-infer``."""

import sys

from bert_infer.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python -m bert_infer"))
