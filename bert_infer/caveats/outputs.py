"""Warnings of what the outputs are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bert_infer.records import Caveat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bert_infer.running.preparation import Prepared
    from bert_infer.running.run_record import Record

_POOR_COSINE = 0.99


def of(record: Record, prepared: Prepared, figures: dict[str, Any]) -> Iterator[Caveat]:
    """Yield what a reader of the outputs has to know."""
    yield from _outputs(record, prepared)
    yield from _drift(figures["drift"], is_finite=record.is_finite)


def _outputs(record: Record, prepared: Prepared) -> Iterator[Caveat]:
    workload, limit = prepared.workload, prepared.max_length
    if prepared.source.kind == "random":
        yield Caveat(
            "random_weights",
            "The weights are random: outputs are meaningless, timings are valid.",
            "Set model.checkpoint, or model.weights=auto and go online once to fetch the hub's.",
        )
    elif prepared.tokenizer_provenance["source"].startswith("bundled"):
        yield Caveat(
            "bundled_tokenizer",
            "The model's own tokenizer was not found; the bundled bert-*-uncased vocabulary "
            "stands in.",
            "Right for those models; for another, put its tokenizer.json beside its weights.",
        )
    if record.weights and record.weights.get("pooler"):
        yield Caveat(
            "random_pooler",
            "The weights have no pooler, as those of models for single tokens; a random one stands "
            "in, whose pooled output is meaningless.",
            "Take output.pooling=cls, or mean or hidden states (not of engine=fused_cls).",
        )
    if workload.truncated:
        yield Caveat(
            "truncated_texts",
            f"{workload.truncated} of {workload.texts} texts had more than {limit} tokens and lost "
            "the rest.",
            "Split them: this is the model's limit."
            if limit == prepared.architecture.max_length
            else "Split them, or raise max_length.",
        )
    if workload.skipped:
        yield Caveat(
            "empty_texts",
            f"Empty texts were skipped: {workload.skipped}.",
            "A table's missing cell is an empty text, too. Outputs keep the positions that the "
            "others have in the input.",
        )


def _drift(drift: dict[str, Any] | None, *, is_finite: bool) -> Iterator[Caveat]:
    measured = ("min_cosine", "pooled_min_cosine", "max_abs")
    if not is_finite or (drift and None in map(drift.get, measured)):
        yield Caveat(
            "not_finite",
            "Some outputs are infinite or NaN.",
            "Use a dtype of greater range (bf16, fp32); if it stays, look into the weights.",
        )
        return
    if drift is None:
        return
    cosines = {
        "first token" if drift["tokens"] == "first" else "token": drift["min_cosine"],
        "pooled output": drift["pooled_min_cosine"],
    }
    what, least = min(cosines.items(), key=lambda item: item[1])
    if least < _POOR_COSINE:
        yield Caveat(
            "large_drift",
            f"Outputs drift: some {what}'s cosine to the fp32 reference is {least:.4f} (tokens' "
            f"mean {drift['mean_cosine']:.4f}).",
            "Check what it costs your task, or use a more exact dtype.",
        )
