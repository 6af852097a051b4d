"""The front door: ``python run.py dtype=bf16 batch=12``; see ``python run.py --help``."""

from bert_infer.cli import enter

if __name__ == "__main__":
    enter("python run.py")
