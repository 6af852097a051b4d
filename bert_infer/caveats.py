"""Every warning that a run can give, each with its remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bert_infer.records import Caveat

if TYPE_CHECKING:
    from collections.abc import Callable

    from bert_infer.metrics import Record, Workload

_MUCH_PADDING = 0.3
_P99_SAMPLES = 100


def random_weights(record: Record, workload: Workload) -> Caveat | None:
    """The outputs mean nothing."""
    del workload
    if record.choice["weights"] != "random":
        return None
    return Caveat(
        "random_weights",
        "The weights are random: outputs are meaningless, timings are valid.",
        "Set model.checkpoint, or model.weights=auto and go online once to fetch the hub's.",
    )


def one_iteration(record: Record, workload: Workload) -> Caveat | None:
    """There is no spread between passes to see."""
    del workload
    if record.choice["iterations"] > 1:
        return None
    return Caveat(
        "one_iteration",
        "One measured pass says nothing about how far a second one would differ.",
        "Set iterations=10 or more before comparing.",
    )


def few_samples(record: Record, workload: Workload) -> Caveat | None:
    """A high percentile would be a guess."""
    del workload
    samples = len(record.forwards)
    if samples >= _P99_SAMPLES:
        return None
    return Caveat(
        "few_samples",
        f"{samples} forwards are too few for a 99th percentile, which is null.",
        f"Measure at least {_P99_SAMPLES} forwards: raise iterations.",
    )


def no_warmup(record: Record, workload: Workload) -> Caveat | None:
    """First forwards are among the figures."""
    del workload
    if record.phases.seconds["warmup"] is not None or record.phases.seconds["compile"] is not None:
        return None
    return Caveat(
        "no_warmup",
        "There was no warm-up: the first forward of each shape is among the figures.",
        "Leave warmup=auto.",
    )


def padding_waste(record: Record, workload: Workload) -> Caveat | None:
    """Much of the time went into padding."""
    del record
    if workload.padding_waste <= _MUCH_PADDING:
        return None
    return Caveat(
        "padding_waste",
        f"{workload.padding_waste:.0%} of the computed tokens are padding.",
        workload.less_padding,
    )


def truncated_texts(record: Record, workload: Workload) -> Caveat | None:
    """Texts lost their end."""
    if not workload.truncated:
        return None
    longest = record.architecture.max_length if record.architecture else None
    limit = record.choice["max_length"]
    return Caveat(
        "truncated_texts",
        f"{workload.truncated} of {workload.texts} texts are longer than {limit} tokens and "
        "lost their end.",
        "Split them, or raise max_length."
        if limit != longest
        else "Split them: this is the model's limit.",
    )


def empty_texts(record: Record, workload: Workload) -> Caveat | None:
    """Texts were left out."""
    del record
    if not workload.skipped:
        return None
    return Caveat(
        "empty_texts",
        f"{workload.skipped} empty texts were skipped.",
        "Nothing to do; outputs keep the positions that the others have in the input.",
    )


def batch_not_filled(record: Record, workload: Workload) -> Caveat | None:
    """No forward was as large as asked."""
    del record
    largest = max(shape.rows for shape in workload.shapes)
    if not workload.uses_batch or largest >= workload.batch:
        return None
    return Caveat(
        "batch_not_filled",
        f"batch={workload.batch} was asked, but no forward holds more than {largest} sequences.",
        f"Give more texts, widen batching.window where there is one, or set batch={largest}.",
    )


def batch_ignored(record: Record, workload: Workload) -> Caveat | None:
    """The batching policy decides by itself."""
    repeated = len(workload.lengths) > workload.texts
    if workload.uses_batch or workload.batch == 1 or repeated:
        return None
    return Caveat(
        "batch_ignored",
        f"batch={workload.batch} has no effect: batching={record.choice['batching']} decides how "
        "many sequences a forward holds.",
        "Leave batch out, or set batching.max_tokens.",
    )


def slow_fp16(record: Record, workload: Workload) -> Caveat | None:
    """Half precision is emulated."""
    del workload
    if (record.choice["dtype"], record.choice["device"]) != ("fp16", "cpu"):
        return None
    return Caveat(
        "slow_fp16",
        "Most CPUs have no fp16 arithmetic, and compute it slower than fp32.",
        "Use dtype=bf16 on a CPU with AVX512-BF16 or AMX, else dtype=fp32.",
    )


def bundled_tokenizer(record: Record, workload: Workload) -> Caveat | None:
    """Trained weights met a vocabulary that may not be theirs."""
    del workload
    source = record.provenance["tokenizer"]["source"]
    if record.choice["weights"] == "random" or not source.startswith("bundled"):
        return None
    return Caveat(
        "bundled_tokenizer",
        "The model's own tokenizer was not found; the bundled bert-*-uncased vocabulary stands in.",
        "Right for those models; for another, put its tokenizer.json beside its weights.",
    )


ALL: tuple[Callable[[Record, Workload], Caveat | None], ...] = (
    random_weights,
    bundled_tokenizer,
    one_iteration,
    few_samples,
    no_warmup,
    padding_waste,
    truncated_texts,
    empty_texts,
    batch_not_filled,
    batch_ignored,
    slow_fp16,
)


def of(record: Record) -> list[Caveat]:
    """Return every warning that a finished run deserves."""
    workload = record.workload
    if workload is None:
        return []
    return [caveat for rule in ALL if (caveat := rule(record, workload)) is not None]
