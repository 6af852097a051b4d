import torch
from habana_frameworks.torch import hpu

seen = []
"""The masks' shapes and dtypes, for the tests."""


class FusedSDPA(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        q,
        k,
        v,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        softmax_mode="None",
        recompute_mode=None,
        valid_seq_len=None,
        seq_padding_type="left",
        return_dropout_mask=False,
    ):
        assert softmax_mode.lower() in {"none", "fast"}
        assert seq_padding_type.lower() in {"left", "right"}
        assert valid_seq_len is None or (is_causal and attn_mask is None)
        if recompute_mode is None:
            recompute_mode = hpu.recompute_sdp_enabled()
        assert not (recompute_mode and return_dropout_mask)
        seen.append(attn_mask if attn_mask is None else (tuple(attn_mask.shape), attn_mask.dtype))
        if attn_mask is not None:
            assert attn_mask.dim() == 4
            assert attn_mask.is_floating_point(), "a mask is added"
            assert attn_mask.dtype == q.dtype
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale
        )
