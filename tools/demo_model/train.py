"""Trains the demo model on one GPU, in runs of minutes that go on from each other.

Reads windows of tokens that `corpus.py` writes (also while it is still writing them), captures the
whole step as a CUDA graph, and leaves `state.pt` (resume) and `model.safetensors` (bf16, real
tensor names) in the output folder.

Usage: python train.py --data DIR --out DIR --seconds 540 --schedule 0,1500 --total-seconds 1500
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import fast_forward
import numpy as np
import torch
from optimizer import Optimizer
from safetensors.torch import load_file, save_file
from shape import demo_config
from torch import Tensor
from transformers import Qwen3_5MoeForCausalLM

WEIGHT_OF_CLASS = (0.0, 0.2, 1.0, 2.0)
BALANCE_WEIGHT, Z_WEIGHT, MTP_WEIGHT = 0.01, 1e-4, 0.3


class Windows:
    """Batches of token windows from ``*.npy`` shards [windows, 2, T + 2] uint16, in shard order.

    Plane 0 holds ids, plane 1 the loss class of each token. Shards that appear later are used as
    they come; when all have been seen, they start again in a new order.
    """

    def __init__(self, folder: Path, batch: int, seed: int, skip: int) -> None:
        self.folder, self.batch = folder, batch
        self.random = np.random.default_rng(seed)
        self.used: set[str] = set()
        self.epoch, self.queue = 0, []
        for _ in range(skip):
            self.used.add(self._next_file())

    def _next_file(self) -> str:
        while True:
            names = sorted(p.name for p in self.folder.glob("*.npy"))
            fresh = [n for n in names if n not in self.used]
            if fresh:
                return fresh[int(self.random.integers(len(fresh)))] if self.epoch else fresh[0]
            if (self.folder / "done").exists():
                self.used.clear()
                self.epoch += 1
                continue
            time.sleep(0.2)

    def __iter__(self) -> Windows:
        return self

    def __next__(self) -> Tensor:
        while len(self.queue) < self.batch:
            name = self._next_file()
            self.used.add(name)
            rows = np.load(self.folder / name)
            self.queue.extend(rows[self.random.permutation(len(rows))])
        picked = np.stack(self.queue[: self.batch])
        del self.queue[: self.batch]
        return torch.from_numpy(picked.astype(np.int32)).pin_memory()


def learning_factor(progress: float, warmup: float = 0.01) -> float:
    """Warm-up, plateau, then cosine to 2 % over the last 70 %."""
    if progress < warmup:
        return progress / warmup
    if progress < 0.3:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min((progress - 0.3) / 0.7, 1.0)))


class Trainer:
    """Model, optimizer and the captured step."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high")
        config = demo_config()
        config._attn_implementation = "eager"
        self.config = config
        self.model = Qwen3_5MoeForCausalLM(config).cuda()
        self.mtp = fast_forward.MtpHead(config).cuda()
        self._initialise()
        named = dict(self.model.named_parameters())
        named |= {f"mtp.{n}": p for n, p in self.mtp.named_parameters()}
        self.named = named
        self.optimizer = Optimizer(named, args.matrix_rate, args.vector_rate)
        self.rotary = fast_forward.rotary_table(config, args.length, "cuda")
        self.classes = torch.tensor(WEIGHT_OF_CLASS, device="cuda")
        self.batch = torch.zeros(args.batch, 2, args.length + 2, dtype=torch.int32, device="cuda")
        self.metrics: dict[str, Tensor] = {}
        self.graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def _initialise(self) -> None:
        depth = 2 * (self.config.num_hidden_layers + 1)
        modules = dict(self.model.named_parameters()) | {
            f"mtp.{n}": p for n, p in self.mtp.named_parameters()
        }
        for name, p in modules.items():
            if p.dim() >= 2 and "conv1d" not in name:
                fan_in = p.shape[-1]
                std = 0.02 if "embed" in name else fan_in**-0.5
                if any(part in name for part in ("o_proj", "out_proj", "down_proj")):
                    std *= (2 / depth) ** 0.5
                p.normal_(std=std)
            elif "conv1d" in name:
                p.uniform_(-0.5, 0.5)
            elif name.startswith("mtp.") and "norm" in name:
                p.zero_()
            elif name.endswith("A_log"):
                p.copy_(torch.linspace(0.05, 4.0, p.shape[0]).log())
            elif name.endswith("dt_bias"):
                p.copy_(torch.linspace(0.01, 0.3, p.shape[0]).expm1().log())

    def compute(self) -> None:
        """Forward, backward and update on `self.batch`; leaves `self.metrics`."""
        ids = self.batch[:, 0].long()
        weights = self.classes[self.batch[:, 1].long()]
        out = fast_forward.forward_losses(
            self.model, self.mtp, ids, self.rotary, torch.bfloat16
        )
        main_weight, ahead_weight = weights[:, 1:-1], weights[:, 2:]
        main = (out["main"] * main_weight).sum() / main_weight.sum().clamp(min=1)
        ahead = (out["mtp"] * ahead_weight).sum() / ahead_weight.sum().clamp(min=1)
        balance = torch.stack([b for b, _ in out["router"]])
        z = torch.stack([z for _, z in out["router"]]).sum()
        loss = main + MTP_WEIGHT * ahead + BALANCE_WEIGHT * balance.sum() + Z_WEIGHT * z
        for p in self.named.values():
            if p.grad is not None:
                p.grad.zero_()
        loss.backward()
        self.optimizer.step()
        self.metrics = {
            "main": main.detach(),
            "mtp": ahead.detach(),
            "balance": balance.detach().mean(),
        }

    def capture(self, windows: Windows) -> None:
        """Warms up (compilation) with a learning rate of zero, then records the step."""
        self.batch.copy_(next(windows))
        saved = {n: p.detach().clone() for n, p in self.named.items()}
        state = {k: v for k, v in self.optimizer.state().items()}
        copy = {
            k: {n: t.clone() for n, t in v.items()} if isinstance(v, dict) else v.clone()
            for k, v in state.items()
        }
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.compute()
        torch.cuda.current_stream().wait_stream(stream)
        if not self.args.no_graph:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.compute()
        with torch.no_grad():
            for n, p in self.named.items():
                p.copy_(saved[n])
        self.optimizer.load(copy)

    def step(self, batch: Tensor, factor: float) -> None:
        """One update with the learning-rate factor in [0, 1]."""
        self.batch.copy_(batch, non_blocking=True)
        self.optimizer.factor.fill_(factor)
        if self.graph is not None:
            self.graph.replay()
        else:
            self.compute()

    def save(self, out: Path, seconds: float, steps: int, shards: int) -> None:
        """Writes the resume state and the bf16 weights."""
        torch.save(
            {
                "parameters": {n: p.detach() for n, p in self.named.items()},
                "optimizer": self.optimizer.state(),
                "seconds": seconds,
                "steps": steps,
                "shards": shards,
            },
            out / "state.pt",
        )
        tensors = {
            n: p.detach().to(torch.bfloat16).contiguous().cpu()
            for n, p in self.named.items()
            if n != "lm_head.weight"
        }
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        self.config.architectures = ["Qwen3_5MoeForCausalLM"]
        self.config.mtp_num_hidden_layers = 1
        self.config.eos_token_id, self.config.pad_token_id = self.args.eos, self.args.pad
        self.config.save_pretrained(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--total-seconds", type=float, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--matrix-rate", type=float, default=4e-3)
    parser.add_argument("--vector-rate", type=float, default=3e-3)
    parser.add_argument("--init", type=Path, help="bf16 weights to start from, without a state")
    parser.add_argument("--elapsed", type=float, default=0.0, help="schedule's start with --init")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eos", type=int, default=4089, help="id of <|im_end|>")
    parser.add_argument("--pad", type=int, default=4087, help="id of <|endoftext|>")
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--no-graph", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    trainer = Trainer(args)
    seconds, steps, shards = 0.0, 0, 0
    if (args.out / "state.pt").exists():
        state = torch.load(args.out / "state.pt", map_location="cuda")
        with torch.no_grad():
            for n, p in trainer.named.items():
                p.copy_(state["parameters"][n])
        trainer.optimizer.load(state["optimizer"])
        seconds, steps, shards = state["seconds"], state["steps"], state["shards"]
    elif args.init:
        seconds = args.elapsed
        tensors = load_file(args.init, device="cuda")
        with torch.no_grad():
            for n, p in trainer.named.items():
                p.copy_(tensors[n])
    windows = Windows(args.data, args.batch, args.seed + steps, shards)
    trainer.capture(windows)
    torch.cuda.synchronize()
    print(f"ready after {time.monotonic() - begin:.1f} s", flush=True)
    if args.profile:
        profile(trainer, windows)
    start, done = time.monotonic(), 0
    while time.monotonic() - begin < args.seconds and done < args.max_steps:
        factor = learning_factor((seconds + time.monotonic() - start) / args.total_seconds)
        trainer.step(next(windows), factor)
        done += 1
        if done % 100 == 0 or done == 10:
            values = {k: round(v.item(), 4) for k, v in trainer.metrics.items()}
            rate = done * args.batch * args.length / (time.monotonic() - start)
            record = {"step": steps + done, "lr": round(factor, 3), "tokens_s": int(rate)}
            print(json.dumps(record | values | {"epoch": windows.epoch}), flush=True)
    torch.cuda.synchronize()
    seconds += time.monotonic() - start
    trainer.save(args.out, seconds, steps + done, len(windows.used))
    print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)


def profile(trainer: Trainer, windows: Windows) -> None:
    """Prints the kernels that take the time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
        for _ in range(3):
            trainer.step(next(windows), 0.0)
        torch.cuda.synchronize()
    table = record.key_averages().table(sort_by="cuda_time_total", row_limit=45)
    print("\n".join(line[:70] + line[-110:] for line in table.splitlines()), flush=True)


if __name__ == "__main__":
    main()
