"""A run on the terminal: what it computed and what it took."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.text import Text

from bert_infer import console
from bert_infer.console import between, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bert_infer.processes.worker import Finished, Glimpse


def show(finished: Finished, directory: object) -> None:
    """Print what a run computed and measured, why it failed if it did, and where its files are."""
    if finished.outputs:
        _show_outputs(finished.outputs)
        _show_metrics(finished.metrics)
    if error := finished.metrics["error"]:
        sys.stderr.write("The run failed. {type}: {message}\n  {remedy}\n".format(**error))
    console.show_directory(directory)


def _show_outputs(outputs: Sequence[Glimpse]) -> None:
    """Print the shape, type and first and last values of what the last forward computed."""
    for glimpse in outputs:
        console.show(
            Text.assemble((glimpse.title, "bold"), f"  {list(glimpse.shape)}  {glimpse.dtype}")
        )
        console.show(Text(f"  first  {_ends(glimpse.first)}\n  last   {_ends(glimpse.last)}"))


def _show_metrics(metrics: dict[str, Any]) -> None:
    """Print the metrics as a table, then the warnings."""
    choice, workload, latency = metrics["choice"], metrics["workload"], metrics["latency_ms"]
    throughput, compute, memory = metrics["throughput"], metrics["compute"], metrics["memory"]
    resolved = [key for key in choice if "." in key and choice[key] is not None]
    groups = ("dtype", "batching", "device", "engine", "graph", *resolved)
    how = " ".join(f"{key}={choice[key]}" for key in groups)
    length = workload["length"]
    rows = {
        "model": f"{choice['model']}, {choice['weights']} weights",
        "choice": how,
        "workload": f"texts {workload['texts']}, sequences {workload['sequences']}, "
        f"forwards {workload['forwards_per_pass']}, iterations {choice['iterations']}",
        "tokens": f"{workload['real_tokens']} real, {workload['padded_tokens']} padded "
        f"({workload['padding_waste']:.1%} waste), length {length['min']} to {length['max']}",
        "latency": f"{number(latency['p50'])} ms a forward{between(latency['p50_ci95'])} "
        f"(median of {latency['samples']}; min {number(latency['min'])}, "
        f"max {number(latency['max'])})",
        "throughput": f"{number(throughput['sequences_per_s'])} sequences/s"
        f"{between(throughput['sequences_per_s_ci95'])}, "
        f"{number(throughput['real_tokens_per_s'])} real tokens/s",
        "compute": f"{number(_scaled(compute['useful_flop_per_s'], 1e-9))} useful GFLOP/s, "
        f"{number(_scaled(compute['fraction_of_ceiling'], 100))} % of the ceiling of "
        f"{number(_scaled(compute['ceiling_flop_per_s'], 1e-9))}",
        **({"drift": _drift(metrics["drift"])} if metrics["drift"] else {}),
        "memory": f"{number(_scaled(memory['peak_host_bytes'], 2**-20))} MiB peak on the host, "
        f"{number(_scaled(memory['peak_device_bytes'], 2**-20))} on the device",
        "phases": ", ".join(
            f"{name} {seconds:.2f} s"
            for name, seconds in metrics["phases_s"].items()
            if seconds is not None
        ),
    }
    for name, value in rows.items():
        console.show(Text.assemble((f"{name:<12}", "bold"), value))
    for warning in metrics["warnings"]:
        console.show(Text(f"Warning: {warning['message']} {warning['remedy']}", "yellow"))


def _ends(six: Sequence[float]) -> str:
    values = [f"{value:+.4f}" for value in six]
    return f"[{', '.join(values[:3])}, ..., {', '.join(values[3:])}]"


def _drift(drift: dict[str, Any]) -> str:
    first = "first tokens' " if drift["tokens"] == "first" else ""
    return (
        f"{first}cosine to fp32 {_fraction(drift['min_cosine'])} at least, "
        f"{_fraction(drift['mean_cosine'])} on average; pooled "
        f"{_fraction(drift['pooled_min_cosine'])} at least (texts: {drift['texts']})"
    )


def _fraction(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6f}"


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
