"""Peers that bring a runtime of their own: ONNX Runtime, OpenVINO, CTranslate2."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from peer_engines import BATCH, THREADS, Encode, Files, Peer, by_batches, sorted_batches
from peer_pytorch import bert
from peer_workers import FailedError

from bert_infer.machine import cpu_flags

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from bert_infer.batching.layouts import PaddedBatch


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
            hidden_states: torch.Tensor = outputs.last_hidden_state
            return hidden_states

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

    is_converted: ClassVar[bool] = True

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
            hidden_states: NDArray[np.float32]
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

    is_converted: ClassVar[bool] = True

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
                outputs = self.bert(input_ids=input_ids, attention_mask=mask)
                hidden_states: torch.Tensor = outputs.last_hidden_state
                return hidden_states

        names = ("input_ids", "attention_mask")
        model = openvino.convert_model(
            Encoder().eval(), example_input=dict(zip(names, _example(), strict=True))
        )
        openvino.save_model(model, directory / "model.xml", compress_to_fp16=False)

    def _quantize(self, files: Files, traced: Path, directory: Path) -> None:
        import nncf
        import openvino

        if files.calibration is None:
            raise FailedError("there is no text to calibrate it by")
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

    is_converted: ClassVar[bool] = True

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
