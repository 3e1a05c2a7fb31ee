"""The gated delta rule in chunks, fast enough to train with; mathematically transformers' own.

Owns the chunked rule with its scan over chunks and the inverse of the unit lower triangular system
(a Triton kernel on CUDA, a triangular solve elsewhere). Differs from transformers in speed only:
the triangular system is inverted once for all chunks, its gradient is two matrix products, and
only the state's recurrence is a loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

CHUNK = 64

if triton is not None:

    @triton.jit
    def _unit_lower_inverse_kernel(lower_ptr, out_ptr, SIZE: tl.constexpr):
        base = tl.program_id(0) * SIZE * SIZE
        rows = tl.arange(0, SIZE)
        cols = tl.arange(0, SIZE)
        inverse = tl.where(rows[:, None] == cols[None, :], 1.0, 0.0)
        for i in range(1, SIZE):
            row = tl.load(lower_ptr + base + i * SIZE + cols)
            row = tl.where(cols < i, row, 0.0)
            update = -tl.sum(row[:, None] * inverse, axis=0)
            update = tl.where(cols < i, update, tl.where(cols == i, 1.0, 0.0))
            inverse = tl.where(rows[:, None] == i, update[None, :], inverse)
        tl.store(out_ptr + base + rows[:, None] * SIZE + cols[None, :], inverse)


class _UnitLowerInverse(torch.autograd.Function):
    """(I + strictly lower part)^-1 of a batch of square matrices [..., C, C], float32."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, lower: Tensor) -> Tensor:
        lower = lower.contiguous()
        if lower.is_cuda and triton is not None:
            out = torch.empty_like(lower)
            size = lower.shape[-1]
            _unit_lower_inverse_kernel[(lower.numel() // size**2,)](lower, out, SIZE=size)
        else:
            eye = torch.eye(lower.shape[-1], device=lower.device).expand_as(lower)
            out = torch.linalg.solve_triangular(
                lower.tril(-1) + eye, eye, upper=False, unitriangular=True
            )
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        transposed = inverse.transpose(-1, -2)
        return -(transposed @ grad @ transposed).tril(-1)


def unit_lower_inverse(lower: Tensor) -> Tensor:
    """Returns (I + tril(lower, -1))^-1, differentiable; lower is [..., C, C] float32."""
    return _UnitLowerInverse.apply(lower)


def prepare_chunks(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor
) -> tuple[Tensor, ...]:
    """Everything of the rule that needs neither the inverse nor the state.

    Args:
        query: [B, T, K heads, dk], not yet normalised; T a multiple of the chunk.
        key: As query.
        value: [B, T, V heads, dv].
        decay: [B, T, V heads], log space, at most 0, float32.
        beta: [B, T, V heads] float32.

    Returns:
        The triangular system, the attention inside a chunk, beta * v, decayed beta * k, the
        decayed query and key, each [B * V heads, chunks, C, ...], the chunk's whole decay
        [B * V heads, chunks, 1, 1].
    """
    batch, length, heads, dv = value.shape
    chunks = length // CHUNK

    def heads_first(x: Tensor) -> Tensor:
        if x.shape[2] != heads:
            x = x.repeat_interleave(heads // x.shape[2], dim=2)
        x = x.transpose(1, 2).float()
        return x.reshape(batch * heads, chunks, CHUNK, *x.shape[3:])

    query, key, value, decay, beta = (heads_first(x) for x in (query, key, value, decay, beta))
    query = query * torch.rsqrt((query * query).sum(-1, keepdim=True) + 1e-6)
    query = query * query.shape[-1] ** -0.5
    key = key * torch.rsqrt((key * key).sum(-1, keepdim=True) + 1e-6)
    total = decay.cumsum(-1)
    upper = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=value.device).triu(1)
    pairwise = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(upper, float("-inf")).exp()
    scaled_key = key * beta.unsqueeze(-1)
    system = (scaled_key @ key.transpose(-1, -2)) * pairwise
    inside = (query @ key.transpose(-1, -2)) * pairwise
    grown = total.exp().unsqueeze(-1)
    last = total[..., -1:]
    return (
        system,
        inside,
        value * beta.unsqueeze(-1),
        scaled_key * grown,
        query * grown,
        key * (last - total).exp().unsqueeze(-1),
        last.exp().unsqueeze(-1),
    )


def scan_chunks(
    new_value: Tensor, read_key: Tensor, write_key: Tensor, chunk_decay: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence of the state over chunks, the only sequential part.

    Args:
        new_value: [N, chunks, C, dv].
        read_key: [N, chunks, C, dk].
        write_key: [N, chunks, C, dk].
        chunk_decay: [N, chunks, 1, 1].

    Returns:
        The state before each chunk [N, chunks, dk, dv] and the corrected values.
    """
    # unbind, not indexing: the gradient of x[:, i] is a whole tensor of zeros for every chunk
    rows = zip(
        *(x.unbind(1) for x in (new_value, read_key, write_key, chunk_decay)), strict=True
    )
    state = new_value.new_zeros(new_value.shape[0], read_key.shape[-1], new_value.shape[-1])
    states, values = [], []
    for new, read, write, chunk in rows:
        states.append(state)
        corrected = torch.baddbmm(new, read, state, alpha=-1)
        values.append(corrected)
        state = torch.baddbmm(state * chunk, write.transpose(-1, -2), corrected)
    return torch.stack(states, 1), torch.stack(values, 1)

