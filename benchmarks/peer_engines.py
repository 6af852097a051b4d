"""What a user would run instead, each as it is best used, and ours: loaded, converted, called.

An engine's worker process imports what it needs; this module's own imports are light.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from peer_workers import FailedError

from bert_infer import compose
from bert_infer.environment import cpu_flags
from bert_infer.layouts import Group, PaddedBatch
from bert_infer.measure import without_garbage_collection
from bert_infer.outputs import HiddenStates

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from bert_infer.records import Tokens

THREADS = len(os.sched_getaffinity(0))
BATCH = 4
VENDOR_BATCH, VENDOR_WIDTH = 12, 384
_PAD = 0

States = Sequence[Any]
"""A sequence's hidden states ``[tokens, hidden]`` each, or its embedding ``[hidden]``."""

Passes = Callable[[Callable[[], States]], Iterator[int]]
"""Given how to get the latest outputs, yields whenever a pass is to be done."""

Measure = Callable[["Workload", Passes], None]
Encode = Callable[["Tokens"], States]
Forward = Callable[["PaddedBatch"], Any]
"""A batch to its hidden states ``[rows, width, hidden]`` in host memory."""


@dataclass(frozen=True, eq=False)
class Workload:
    """What a pass goes over.

    Attributes:
        overrides: what makes it ours.
        tokens: the same for the peers.
        is_latency: whether users wait for it, so that milliseconds are what to show.
    """

    name: str
    overrides: tuple[str, ...]
    tokens: Tokens
    is_latency: bool = False


@dataclass(frozen=True, eq=False)
class Files:
    """Where things are.

    Attributes:
        model: a transformers model directory, the one all engines start from.
        scratch: where conversions go.
        calibration: real text that is not measured.
    """

    model: Path
    scratch: Path
    calibration: Tokens

    def converted(self, name: str, write: Callable[[Path], object]) -> Path:
        """Return the directory ``name``, which ``write`` fills if it is not there."""
        directory = self.scratch / name
        if not directory.is_dir():
            beside = self.scratch / f"{name}.part"
            beside.mkdir(exist_ok=True)
            write(beside)
            beside.rename(directory)
        return directory


class Engine(ABC):
    """Something that computes hidden states.

    Attributes:
        label: its row's name.
        dtypes: those it has.
        lacks: why it has no others.
        is_ours: whether it is this project's.
    """

    label: str
    dtypes: ClassVar[tuple[str, ...]]
    lacks: ClassVar[str]
    is_ours: ClassVar[bool] = False

    def check(self, dtype: str) -> None:
        """Refuse a dtype that it does not have.

        Raises:
            FailedError: saying why.
        """
        if dtype not in self.dtypes:
            raise FailedError(self.lacks)

    def convert(self, files: Files, dtype: str) -> None:
        """Write the files that it loads, if they are not the model directory's own."""

    @abstractmethod
    def load(self, files: Files, dtype: str) -> Measure:
        """Load it; return what warms up and measures a workload."""


@dataclass(frozen=True)
class Ours(Engine):
    """This project, by its public Python API.

    Attributes:
        choices: overrides by dtype.
        keeps: whether hidden states are kept; they need memory for very many texts.
    """

    label: str
    choices: Mapping[str, str]
    keeps: bool = True

    is_ours: ClassVar[bool] = True

    def check(self, dtype: str) -> None:
        """Refuse a dtype that has no overrides."""
        if dtype not in self.choices:
            raise FailedError(f"has no dtype={dtype}")

    def load(self, files: Files, dtype: str) -> Measure:
        """Leave loading to the run: it knows its input from the start."""

        def measure(workload: Workload, passes: Passes) -> None:
            runner = compose(
                [
                    f"model.name={files.model}",
                    *workload.overrides,
                    *self.choices[dtype].split(),
                    "drift.texts=0",
                    "warmup=1",
                ]
            )
            prepared = runner.prepare()
            kept = HiddenStates(prepared.tokens)
            runner.execute(
                runner.new_record(),
                prepared,
                (kept,) if self.keeps else (),
                passes=lambda _: passes(lambda: kept.in_order),
            )

        return measure


class Peer(Engine):
    """Somebody else's."""

    def load(self, files: Files, dtype: str) -> Measure:
        """Load it."""
        encode = self.encoder(files, dtype)

        def measure(workload: Workload, passes: Passes) -> None:
            latest = [encode(workload.tokens)]  # meets every shape
            with without_garbage_collection():
                for _ in passes(lambda: latest[0]):
                    latest[0] = encode(workload.tokens)

        return measure

    @abstractmethod
    def encoder(self, files: Files, dtype: str) -> Encode:
        """Return what computes the states of all sequences."""


def sorted_batches(tokens: Tokens, batch: int) -> Iterator[PaddedBatch]:
    """Yield sequences of like length, longest first, each batch as wide as its longest."""
    order = np.argsort(-tokens.lengths, kind="stable")
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        yield PaddedBatch.of(Group(rows, int(tokens.lengths[rows[0]])), tokens, _PAD)


def vendor_batches(tokens: Tokens) -> Iterator[PaddedBatch]:
    """Yield sequences as they come, all as wide as the longest, 384 at the least."""
    width = max(VENDOR_WIDTH, int(tokens.lengths.max()))
    for start in range(0, len(tokens), VENDOR_BATCH):
        rows = np.arange(start, min(start + VENDOR_BATCH, len(tokens)))
        yield PaddedBatch.of(Group(rows, width), tokens, _PAD)


def in_order(batches: Iterator[PaddedBatch], forward: Forward, sequences: int) -> States:
    """Return the states of every sequence, without padding, as they stand in host memory."""
    states: list[Any] = [None] * sequences
    for batch in batches:
        hidden_states = forward(batch)
        for row, sequence in enumerate(batch.sequences.tolist()):
            states[sequence] = batch.states(hidden_states, row)
    return states


def by_batches(forward: Forward, batch: int) -> Encode:
    """Return what sorts sequences and runs ``forward`` on ``batch`` of them at a time."""
    return lambda tokens: in_order(sorted_batches(tokens, batch), forward, len(tokens))


def bert(files: Files, dtype: str, attention: str = "sdpa") -> torch.nn.Module:
    """Return transformers' BertModel."""
    import torch
    from transformers import BertModel

    torch.set_num_threads(THREADS)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    return BertModel.from_pretrained(files.model, dtype=kind, attn_implementation=attention).eval()


def torch_forward(model: torch.nn.Module) -> Forward:
    """Return a forward of transformers' BertModel."""
    import torch

    @torch.inference_mode()
    def forward(batch: PaddedBatch) -> torch.Tensor:
        ids, mask = torch.from_numpy(batch.token_ids).long(), torch.from_numpy(batch.mask).long()
        return model(input_ids=ids, attention_mask=mask).last_hidden_state

    return forward


class _OfPyTorch(Peer):
    dtypes: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    lacks: ClassVar[str] = "no int8 of its own"


@dataclass(frozen=True)
class VendorsWay(_OfPyTorch):
    """Every batch padded to a fixed width, as the vendor's script has it."""

    label: str = f"transformers, padded to {VENDOR_WIDTH}, batch {VENDOR_BATCH} (vendor's way)"

    def encoder(self, files: Files, dtype: str) -> Encode:
        """Load it."""
        forward = torch_forward(bert(files, dtype))
        return lambda tokens: in_order(vendor_batches(tokens), forward, len(tokens))


@dataclass(frozen=True)
class Transformers(_OfPyTorch):
    """Eager, with scaled_dot_product_attention."""

    label: str = f"transformers, eager SDPA, sorted, batch {BATCH}"

    def encoder(self, files: Files, dtype: str) -> Encode:
        """Load it."""
        return by_batches(torch_forward(bert(files, dtype)), BATCH)


@dataclass(frozen=True)
class Compiled(_OfPyTorch):
    """By inductor, with the weights frozen into the code."""

    label: str = f"transformers, torch.compile, freezing, sorted, batch {BATCH}"

    def encoder(self, files: Files, dtype: str) -> Encode:
        """Load it."""
        import torch
        from torch._inductor import config

        config.freezing = True
        config.compile_threads = 1  # a pool of processes would outlive the compilation
        return by_batches(torch_forward(torch.compile(bert(files, dtype), dynamic=True)), BATCH)


@dataclass(frozen=True)
class SentenceTransformers(_OfPyTorch):
    """Its own batching and sorting; it returns embeddings alone."""

    label: str = "sentence-transformers encode (embeddings alone)"

    def encoder(self, files: Files, dtype: str) -> Encode:
        """Load it, and let it take token ids for texts: tokenising is not measured."""
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling
        from sentence_transformers.sentence_transformer.modules import Transformer as Module

        torch.set_num_threads(THREADS)
        kind = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
        module = Module(str(files.model), model_kwargs={"dtype": kind})
        model = SentenceTransformer(
            modules=[module, Pooling(module.get_embedding_dimension(), "mean")], device="cpu"
        )

        def preprocess(inputs: list[torch.Tensor], **_: object) -> dict[str, torch.Tensor]:
            ids = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=_PAD)
            lengths = torch.tensor([len(of_one) for of_one in inputs])
            mask = torch.arange(ids.shape[1]) < lengths[:, None]
            return {"input_ids": ids, "attention_mask": mask.long()}

        model.preprocess = preprocess

        def encode(tokens: Tokens) -> States:
            texts = [torch.from_numpy(tokens[i]).long() for i in range(len(tokens))]
            return model.encode(
                texts, convert_to_numpy=False, convert_to_tensor=True, show_progress_bar=False
            )

        return encode


def export_onnx(files: Files, directory: Path) -> None:
    """Write an ONNX file, fused by ONNX Runtime's optimizer."""
    import torch
    from onnxruntime.transformers.optimizer import optimize_model

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # The optimizer knows attention by the pattern that this implementation leaves.
            self.bert = bert(files, "fp32", "eager")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            outputs = self.bert(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=torch.zeros_like(input_ids),
            )
            return outputs.last_hidden_state

    encoder = Encoder().eval()
    names = ["input_ids", "attention_mask", "last_hidden_state"]
    raw = directory / "raw.onnx"
    torch.onnx.export(
        encoder,
        _example(),
        raw,
        input_names=names[:2],
        output_names=names[2:],
        dynamic_axes={name: {0: "rows", 1: "width"} for name in names},
        opset_version=17,
        dynamo=False,  # the optimizer does not find attention in what the newer exporter writes
    )
    config = encoder.bert.config
    optimized = optimize_model(
        str(raw),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
    )
    if not optimized.get_fused_operator_statistics()["Attention"]:
        raise FailedError("its optimizer fused no attention in the exported model")
    optimized.save_model_to_file(str(directory / "model.onnx"))
    raw.unlink()


def _example() -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and a mask to trace with: both kinds of slots, neither size 1."""
    import torch

    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 10:] = 0
    return torch.randint(1, 1000, (2, 16)), mask


@dataclass(frozen=True)
class OnnxRuntime(Peer):
    """With its transformer fusions; int8 by dynamic quantisation."""

    label: str = f"ONNX Runtime, sorted, batch {BATCH}"

    dtypes: ClassVar[tuple[str, ...]] = ("fp32", "int8")
    lacks: ClassVar[str] = "its CPU provider does not compute in bf16"

    def convert(self, files: Files, dtype: str) -> None:
        """Export, fuse and quantise."""
        exported = files.converted("onnx", partial(export_onnx, files))
        if dtype == "int8":
            files.converted("onnx-int8", partial(self._quantize, exported))

    def _quantize(self, exported: Path, directory: Path) -> None:
        from onnx import TensorProto
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(
            exported / "model.onnx",
            directory / "model.onnx",
            # The embeddings are no matmuls, and a scale for a whole matrix costs much accuracy.
            op_types_to_quantize=["MatMul", "Attention"],
            per_channel=True,
            # Without VNNI, products of 8 bits overflow their 16: the weights get 7.
            reduce_range=not cpu_flags() & {"avx512_vnni", "avx_vnni"},
            # Fused operators are its own: ONNX cannot infer what they return.
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )

    def encoder(self, files: Files, dtype: str) -> Encode:
        """Load it."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        # Its threads may spin within a pass, not after it: others measure then.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        directory = files.scratch / {"fp32": "onnx", "int8": "onnx-int8"}[dtype]
        session = onnxruntime.InferenceSession(
            directory / "model.onnx", options, providers=["CPUExecutionProvider"]
        )

        def forward(batch: PaddedBatch) -> NDArray[np.float32]:
            (hidden_states,) = session.run(None, _inputs(batch))
            return hidden_states

        return by_batches(forward, BATCH)


def _inputs(batch: PaddedBatch) -> dict[str, NDArray[np.int64]]:
    return {
        "input_ids": batch.token_ids.astype(np.int64),
        "attention_mask": batch.mask.astype(np.int64),
    }


@dataclass(frozen=True)
class OpenVino(Peer):
    """Converted from the torch module; int8 by NNCF, of weights and activations."""

    batch: int

    dtypes: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")

    @property
    def label(self) -> str:  # type: ignore[override]
        """Its row's name."""
        return f"OpenVINO, sorted, batch {self.batch}"

    def convert(self, files: Files, dtype: str) -> None:
        """Trace the model, and quantise it."""
        import openvino

        del openvino  # only to say early that it is missing
        traced = files.converted("openvino", partial(self._trace, files))
        if dtype == "int8":
            files.converted("openvino-int8", partial(self._quantize, files, traced))

    def _trace(self, files: Files, directory: Path) -> None:
        import openvino
        import torch

        class Encoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bert = bert(files, "fp32")

            def forward(
                self, input_ids: torch.Tensor, attention_mask: torch.Tensor
            ) -> torch.Tensor:
                # Of 4 dimensions, it is used as it is: what transformers does with one of 2
                # depends on values, and so cannot be traced.
                mask = (1.0 - attention_mask[:, None, None, :].float()) * -1e4
                return self.bert(input_ids=input_ids, attention_mask=mask).last_hidden_state

        names = ("input_ids", "attention_mask")
        model = openvino.convert_model(
            Encoder().eval(), example_input=dict(zip(names, _example(), strict=True))
        )
        openvino.save_model(model, directory / "model.xml", compress_to_fp16=False)

    def _quantize(self, files: Files, traced: Path, directory: Path) -> None:
        import nncf
        import openvino

        batches = [_inputs(batch) for batch in sorted_batches(files.calibration, BATCH)]
        quantized = nncf.quantize(
            openvino.Core().read_model(traced / "model.xml"),
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
        )
        openvino.save_model(quantized, directory / "model.xml", compress_to_fp16=False)

    def encoder(self, files: Files, dtype: str) -> Encode:
        """Load it."""
        import openvino
        from openvino.properties import hint, inference_num_threads

        asked = openvino.Type.bf16 if dtype == "bf16" else openvino.Type.f32
        directory = files.scratch / ("openvino-int8" if dtype == "int8" else "openvino")
        compiled = openvino.Core().compile_model(
            directory / "model.xml",
            "CPU",
            {
                hint.inference_precision: asked,
                hint.performance_mode: hint.PerformanceMode.LATENCY,
                inference_num_threads: THREADS,
            },
        )
        if compiled.get_property(hint.inference_precision) != asked:
            raise FailedError(f"it does not compute in {dtype} on this processor")
        return by_batches(lambda batch: compiled(_inputs(batch))[0], self.batch)


@dataclass(frozen=True)
class CTranslate2(Peer):
    """Converted by its own converter."""

    label: str = f"CTranslate2, sorted, batch {BATCH}"

    dtypes: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")

    _NAMES: ClassVar[Mapping[str, str]] = {
        "fp32": "float32",
        "bf16": "bfloat16",
        "int8": "int8",
    }

    def convert(self, files: Files, dtype: str) -> None:
        """Convert, and quantise."""
        import ctranslate2

        name = self._NAMES[dtype]
        if name not in ctranslate2.get_supported_compute_types("cpu"):
            raise FailedError(f"it does not compute in {name} on this processor")
        files.converted(f"ctranslate2-{dtype}", partial(self._write, files, name))

    def _write(self, files: Files, name: str, directory: Path) -> None:
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(files.model)).convert(
            str(directory), quantization=name, force=True
        )

    def encoder(self, files: Files, dtype: str) -> Encode:
        """Load it."""
        import ctranslate2

        encoder = ctranslate2.Encoder(
            str(files.scratch / f"ctranslate2-{dtype}"),
            device="cpu",
            compute_type=self._NAMES[dtype],
            inter_threads=1,
            intra_threads=THREADS,
        )
        of = ctranslate2.StorageView.from_array

        def forward(batch: PaddedBatch) -> NDArray[np.float32]:
            output = encoder.forward_batch(of(batch.token_ids), of(batch.lengths.astype(np.int32)))
            return np.array(output.last_hidden_state)

        return by_batches(forward, BATCH)
