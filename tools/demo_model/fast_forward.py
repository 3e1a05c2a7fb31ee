"""A training forward pass over transformers' own modules, several times faster than theirs.

The parameters live in `Qwen3_5MoeForCausalLM` and in `MtpHead`, so that what is saved is the real
format; only the way of computing differs: experts sorted by a permutation whose gradient is a
gather, the delta rule of `delta_rule`, element-wise work fused by torch.compile. `train.py
--check` compares the result with transformers' forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from delta_rule import prepare_chunks, scan_chunks, unit_lower_inverse
from torch import Tensor, nn
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import (
    Qwen3_5MoeDecoderLayer,
    Qwen3_5MoeRMSNorm,
)

COMPILED: dict[str, Callable[..., Any]] = {}
USE_COMPILE = True


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function on first use when `USE_COMPILE` is set."""

    def call(*args: Any) -> Any:  # noqa: ANN401
        if not USE_COMPILE:
            return function(*args)
        name = function.__name__
        if name not in COMPILED:
            COMPILED[name] = torch.compile(function, dynamic=False)
        return COMPILED[name](*args)

    return call


class MtpHead(nn.Module):
    """The multi-token-prediction head under its published tensor names (prefix ``mtp.``)."""

    def __init__(self, config: Qwen3_5MoeTextConfig) -> None:
        super().__init__()
        full = config.layer_types.index("full_attention")
        self.pre_fc_norm_embedding = Qwen3_5MoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_fc_norm_hidden = Qwen3_5MoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([Qwen3_5MoeDecoderLayer(config, full)])
        self.norm = Qwen3_5MoeRMSNorm(config.hidden_size, config.rms_norm_eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Zero-centred RMS norm in float32; returns x's dtype."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return (y * (1.0 + weight.float())).to(x.dtype)


class _Dispatch(torch.autograd.Function):
    """x [N, H] -> the row of each (token, rank), sorted by expert [N * k, H]."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, order: Tensor, inverse: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.tokens = x.shape[0]
        return x[order // (order.shape[0] // x.shape[0])]

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        rows = grad[inverse].view(ctx.tokens, -1, grad.shape[-1])
        return rows.sum(1, dtype=torch.float32).to(grad.dtype), None, None


class _Combine(torch.autograd.Function):
    """Sorted rows [N * k, H] -> their sum for each token [N, H]."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, y: Tensor, order: Tensor, inverse: Tensor, k: int
    ) -> Tensor:
        ctx.save_for_backward(order)
        ctx.k = k
        return y[inverse].view(-1, k, y.shape[-1]).sum(1, dtype=torch.float32).to(y.dtype)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (order,) = ctx.saved_tensors
        return grad[order // ctx.k], None, None, None


@fused
def route(x: Tensor, norm: Tensor, gate: Tensor, k: int) -> tuple[Tensor, ...]:
    """Norm, router, balance statistics. Returns rows, weights, ids, balance loss, z loss."""
    rows = rms_norm(x, norm).reshape(-1, x.shape[-1])
    logits = (rows @ gate.to(rows.dtype).t()).float()
    probs = logits.softmax(-1)
    top, ids = probs.topk(k, dim=-1)
    weights = top / top.sum(-1, keepdim=True)
    z = torch.logsumexp(logits, -1).pow(2).mean()
    return rows, weights, ids, probs.mean(0), z


@fused
def swiglu_weighted(gate_up: Tensor, weights: Tensor, order: Tensor) -> Tensor:
    """silu(gate) * up * routing weight of each sorted row."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    scaled = F.silu(gate) * up * weights.reshape(-1)[order].unsqueeze(-1)
    return scaled.to(gate_up.dtype)


@fused
def shared_expert(
    rows: Tensor, gate: Tensor, up: Tensor, down: Tensor, switch: Tensor
) -> Tensor:
    """The shared expert times its sigmoid gate."""
    dtype = rows.dtype
    hidden = F.silu(rows @ gate.to(dtype).t()) * (rows @ up.to(dtype).t())
    return torch.sigmoid(rows @ switch.to(dtype).t()) * (hidden @ down.to(dtype).t())


def grouped_matmul(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """rows [S, I] sorted by expert times weights [E, O, I] transposed; ends [E] int32."""
    if rows.is_cuda:
        return torch._grouped_mm(rows, weights.transpose(-2, -1), offs=ends)
    parts, start = [], 0
    for expert, end in enumerate(ends.tolist()):
        parts.append(rows[start:end] @ weights[expert].t())
        start = end
    return torch.cat(parts)


def moe(layer: nn.Module, x: Tensor, losses: list[tuple[Tensor, Tensor]]) -> Tensor:
    """post-attention norm and the sparse block; appends (balance, z) losses."""
    block = layer.mlp
    k, experts = block.gate.top_k, block.gate.num_experts
    rows, weights, ids, mean_probs, z = route(
        x, layer.post_attention_layernorm.weight, block.gate.weight, k
    )
    flat = ids.reshape(-1)
    order = torch.argsort(flat, stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=order.device)
    counts = torch.zeros(experts, device=x.device).scatter_add_(
        0, flat, torch.ones_like(flat, dtype=torch.float32)
    )
    losses.append(((counts / flat.shape[0] * mean_probs).sum() * experts, z))
    ends = counts.cumsum(0).to(torch.int32)
    dtype = rows.dtype
    sorted_rows = _Dispatch.apply(rows, order, inverse)
    hidden = grouped_matmul(sorted_rows, block.experts.gate_up_proj.to(dtype), ends)
    hidden = swiglu_weighted(hidden, weights, order)
    out = grouped_matmul(hidden, block.experts.down_proj.to(dtype), ends)
    out = _Combine.apply(out, order, inverse, k)
    shared = block.shared_expert
    out = out + shared_expert(
        rows,
        shared.gate_proj.weight,
        shared.up_proj.weight,
        shared.down_proj.weight,
        block.shared_expert_gate.weight,
    )
    return x + out.view_as(x)


@fused
def delta_inputs(
    x: Tensor,
    norm: Tensor,
    w_qkv: Tensor,
    w_z: Tensor,
    w_ba: Tensor,
    conv: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    dims: tuple[int, int, int, int],
) -> tuple[Tensor, ...]:
    """Norm, projections, causal convolution and the chunk-local part of the delta rule."""
    k_heads, dk, v_heads, dv = dims
    batch, length, _ = x.shape
    dtype = x.dtype
    h = rms_norm(x, norm)
    qkv = h @ w_qkv.to(dtype).t()
    z = h @ w_z.to(dtype).t()
    b, a = (h @ w_ba.to(dtype).t()).float().chunk(2, dim=-1)
    padded = F.pad(qkv, (0, 0, 3, 0)).float()
    mixed = sum(padded[:, j : j + length] * conv[:, 0, j] for j in range(4))
    mixed = F.silu(mixed)
    q, k, v = mixed.split([k_heads * dk, k_heads * dk, v_heads * dv], dim=-1)
    decay = -a_log.float().exp() * F.softplus(a + dt_bias.float())
    return z, *prepare_chunks(
        q.reshape(batch, length, k_heads, dk),
        k.reshape(batch, length, k_heads, dk),
        v.reshape(batch, length, v_heads, dv),
        decay,
        b.sigmoid(),
    )


@fused
def delta_output(
    q: Tensor, states: Tensor, inside: Tensor, corrected: Tensor, z: Tensor, norm: Tensor
) -> Tensor:
    """Reads the states, then the gated norm per head; returns [B, T, heads * dv] in z's dtype."""
    batch, length, width = z.shape
    dv = corrected.shape[-1]
    out = q @ states + inside @ corrected
    out = out.reshape(batch, width // dv, length, dv).transpose(1, 2)
    out = out * torch.rsqrt(out.pow(2).mean(-1, keepdim=True) + 1e-6)
    gate = F.silu(z.float()).reshape(batch, length, width // dv, dv)
    return (norm * out * gate).reshape(batch, length, width).to(z.dtype)


def delta_mixer(layer: nn.Module, x: Tensor) -> Tensor:
    """Residual plus the Gated DeltaNet of one layer."""
    net = layer.linear_attn
    z, system, inside, v, k_read, q, k_write, chunk_decay = delta_inputs(
        x,
        layer.input_layernorm.weight,
        net.in_proj_qkv.weight,
        net.in_proj_z.weight,
        torch.cat([net.in_proj_b.weight, net.in_proj_a.weight]),
        net.conv1d.weight,
        net.A_log,
        net.dt_bias,
        (net.num_k_heads, net.head_k_dim, net.num_v_heads, net.head_v_dim),
    )
    inverse = unit_lower_inverse(system)
    states, corrected = scan_chunks(inverse @ v, inverse @ k_read, k_write, chunk_decay)
    out = delta_output(q, states, inside, corrected, z, net.norm.weight)
    return x + out @ net.out_proj.weight.to(x.dtype).t()


@fused
def attention_inputs(
    x: Tensor,
    norm: Tensor,
    w_qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    dims: tuple[int, int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Norm, projections, head norms and rotary positions; q, k, v are [B, heads, T, hd]."""
    heads, kv_heads, hd = dims
    batch, length, _ = x.shape
    qkv = rms_norm(x, norm) @ w_qkv.to(x.dtype).t()
    q_gate, k, v = qkv.split([heads * hd * 2, kv_heads * hd, kv_heads * hd], dim=-1)
    q, gate = q_gate.reshape(batch, length, heads, 2 * hd).chunk(2, dim=-1)

    def rotate(y: Tensor) -> Tensor:
        half = cos.shape[-1]
        y = y.float()
        c, s = cos[:, None, :], sin[:, None, :]
        first, second, rest = y[..., :half], y[..., half : 2 * half], y[..., 2 * half :]
        turned = torch.cat([first * c - second * s, second * c + first * s, rest], dim=-1)
        return turned.to(x.dtype).transpose(1, 2).contiguous()

    q = rotate(rms_norm(q, q_norm))
    k = rotate(rms_norm(k.reshape(batch, length, kv_heads, hd), k_norm))
    v = v.reshape(batch, length, kv_heads, hd).transpose(1, 2).contiguous()
    return q, k, v, gate.reshape(batch, length, heads * hd)


@fused
def attention_output(x: Tensor, out: Tensor, gate: Tensor, w_o: Tensor) -> Tensor:
    """Residual plus the gated, projected attention."""
    mixed = out.transpose(1, 2).reshape(gate.shape) * torch.sigmoid(gate)
    return x + mixed @ w_o.to(x.dtype).t()


def attention_mixer(layer: nn.Module, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Residual plus the gated full attention of one layer."""
    net = layer.self_attn
    config = net.config
    q, k, v, gate = attention_inputs(
        x,
        layer.input_layernorm.weight,
        torch.cat([net.q_proj.weight, net.k_proj.weight, net.v_proj.weight]),
        net.q_norm.weight,
        net.k_norm.weight,
        *rotary,
        (config.num_attention_heads, config.num_key_value_heads, net.head_dim),
    )
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return attention_output(x, out, gate, net.o_proj.weight)


def rotary_table(config: Qwen3_5MoeTextConfig, length: int, device: str) -> tuple[Tensor, Tensor]:
    """cos and sin [T, rotary / 2] of plain positions."""
    rope = config.rope_parameters
    width = int(config.head_dim * rope["partial_rotary_factor"])
    exponent = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    angles = torch.outer(
        torch.arange(length, device=device, dtype=torch.float32), rope["rope_theta"] ** -exponent
    )
    return angles.cos(), angles.sin()


@fused
def token_losses(hidden: Tensor, norm: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each position [B, T], float32."""
    logits = (rms_norm(hidden, norm) @ head.to(hidden.dtype).t()).float()
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return torch.logsumexp(logits, -1) - picked


@fused
def mtp_input(
    hidden: Tensor, embedded: Tensor, norm_h: Tensor, norm_e: Tensor, fc: Tensor
) -> Tensor:
    """fc([norm_e(next token's embedding) ; norm_h(hidden before the final norm)])."""
    both = torch.cat([rms_norm(embedded, norm_e), rms_norm(hidden, norm_h)], dim=-1)
    return both @ fc.to(hidden.dtype).t()


def forward_losses(
    model: Qwen3_5MoeForCausalLM,
    mtp: MtpHead,
    ids: Tensor,
    rotary: tuple[Tensor, Tensor],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Runs a window of tokens.

    Args:
        model: Holds the parameters.
        mtp: Holds the parameters of the MTP head.
        ids: [B, T + 2] int64; T a multiple of the delta rule's chunk.
        rotary: `rotary_table` of T positions.
        dtype: Activations' type.

    Returns:
        ``main`` and ``mtp`` [B, T] losses of the next and next but one token, ``router`` a list
        of (balance, z) for each layer, the MTP layer last.
    """
    length = ids.shape[1] - 2
    embedding = model.model.embed_tokens.weight
    embedded = F.embedding(ids[:, : length + 1], embedding).to(dtype)
    x = embedded[:, :length]
    router: list[tuple[Tensor, Tensor]] = []
    for layer in model.model.layers:
        if layer.block_type == "linear_attention":
            x = delta_mixer(layer, x)
        else:
            x = attention_mixer(layer, x, rotary)
        x = moe(layer, x, router)
    head = model.lm_head.weight
    main = token_losses(x, model.model.norm.weight, head, ids[:, 1 : length + 1])
    y = mtp_input(
        x,
        embedded[:, 1:],
        mtp.pre_fc_norm_hidden.weight,
        mtp.pre_fc_norm_embedding.weight,
        mtp.fc.weight,
    )
    y = attention_mixer(mtp.layers[0], y, rotary)
    y = moe(mtp.layers[0], y, router)
    ahead = token_losses(y, mtp.norm.weight, head, ids[:, 2:])
    return {"main": main, "mtp": ahead, "router": router}
