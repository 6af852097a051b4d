"""``python -m bert_infer`` is ``bert-infer``."""

from bert_infer.cli import enter

if __name__ == "__main__":
    enter("python -m bert_infer")
