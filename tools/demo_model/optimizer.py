"""Muon for matrices and AdamW for the rest, with every value on the device.

Owns the update rules; nothing in a step reads a number back to the host, so that a whole training
step can be captured as one CUDA graph. The learning-rate factor is a tensor that the caller fills.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5


def orthogonalise(update: Tensor) -> Tensor:
    """Newton-Schulz iteration in bfloat16 on a batch of matrices [..., rows, cols]."""
    x = update.bfloat16()
    transposed = x.shape[-2] > x.shape[-1]
    if transposed:
        x = x.transpose(-1, -2)
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(-1, -2) if transposed else x).float()


class Optimizer:
    """One step function over all parameters.

    Args:
        named: Parameter names and parameters.
        matrix_rate: Peak learning rate of matrices (update scaled to AdamW's RMS).
        vector_rate: Peak learning rate of embeddings, norms, router and scalars.
    """

    def __init__(
        self, named: dict[str, nn.Parameter], matrix_rate: float, vector_rate: float
    ) -> None:
        self.matrices = {n: p for n, p in named.items() if self.is_matrix(n, p)}
        self.vectors = {n: p for n, p in named.items() if n not in self.matrices}
        self.rates = (matrix_rate, vector_rate)
        device = next(iter(named.values())).device
        self.factor = torch.zeros((), device=device)
        self.count = torch.zeros((), device=device)
        self.momentum = {n: torch.zeros_like(p) for n, p in self.matrices.items()}
        self.first = {n: torch.zeros_like(p) for n, p in self.vectors.items()}
        self.second = {n: torch.zeros_like(p) for n, p in self.vectors.items()}

    @staticmethod
    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter is updated by Muon."""
        outside = ("embed", "lm_head", "conv1d", "mlp.gate.weight", "shared_expert_gate")
        narrow = ("in_proj_a", "in_proj_b")
        return parameter.dim() >= 2 and not any(part in name for part in outside + narrow)

    @torch.no_grad()
    def step(self) -> None:
        """Clips, updates every parameter and advances the counters; gradients stay in place."""
        self.count += 1
        grads = [p.grad for p in (*self.matrices.values(), *self.vectors.values())]
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        scale = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(grads, scale)
        groups: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for name, parameter in self.matrices.items():
            momentum = self.momentum[name]
            momentum.lerp_(parameter.grad, 0.05)
            update = parameter.grad.lerp(momentum, 0.95)
            target = parameter.data
            if "gate_up_proj" in name:
                shape = (-1, parameter.shape[1] // 2, parameter.shape[2])
                update, target = update.reshape(shape), target.view(shape)
            if update.dim() == 2:
                update, target = update.unsqueeze(0), target.unsqueeze(0)
            groups.setdefault(tuple(update.shape[-2:]), []).append((update, target))
        for (rows, cols), members in groups.items():
            stacked = orthogonalise(torch.cat([update for update, _ in members]))
            rate = self.factor * (self.rates[0] * 0.2 * max(rows, cols) ** 0.5)
            for (_, target), part in zip(
                members, stacked.split([u.shape[0] for u, _ in members]), strict=True
            ):
                target.mul_(1 - self.factor * self.rates[0] * 0.05).sub_(part * rate)
        self._adam_step()

    def _adam_step(self) -> None:
        parameters = list(self.vectors.values())
        grads = [p.grad for p in parameters]
        first, second = list(self.first.values()), list(self.second.values())
        torch._foreach_lerp_(first, grads, 0.1)
        torch._foreach_mul_(second, 0.98)
        torch._foreach_addcmul_(second, grads, grads, value=0.02)
        rate = self.factor * self.rates[1]
        first_scale = 1 - 0.9**self.count
        second_scale = 1 - 0.98**self.count
        denominators = torch._foreach_div(second, second_scale)
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, 1e-8)
        updates = torch._foreach_div(first, denominators)
        torch._foreach_mul_(updates, rate / first_scale)
        torch._foreach_sub_(parameters, updates)

    def state(self) -> dict[str, object]:
        """What a later run needs to go on."""
        return {
            "momentum": self.momentum,
            "first": self.first,
            "second": self.second,
            "count": self.count,
        }

    def load(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restores `state`."""
        for key in ("momentum", "first", "second"):
            for name, value in getattr(self, key).items():
                value.copy_(state[key][name])
        self.count.copy_(state["count"])
