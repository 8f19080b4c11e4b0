"""Train the demo model: one command, resumable, done by the clock.

    python train.py CORPUS.jsonl.xz TOKENIZER.json OUT

leaves in OUT: `demo.npz` (what `export.py` makes the GGUF from), `training.json` (settings, losses, expert
usage, routing) and `routing.npz` (the experts chosen on held-out text). While it runs it appends to
`log.jsonl` and keeps `checkpoint.pt`, from which the same command goes on.

Loss: next-token cross-entropy; plus Qwen's load balancing over the whole batch (fraction of selections
times mean probability, arXiv:2501.11873); plus, in all layers but the first, a term that rewards probability
on the experts of the token before. That one's weight is steered, layer by layer, so that the share of experts
repeated at the next token comes to what was published for Qwen3-30B-A3B, 45 % as a mean over the layers: a
model this small repeats less by itself, and the demo should strain a cache as real models do.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from model import DemoModel, q4_0_parts
from shape import Shape
from tokenizers import Tokenizer
from torch import Tensor

END_ID = 0  # <|endoftext|>, the tokenizer's first special token


@dataclass(frozen=True)
class Settings:
    """How it is trained; tokens are those of one step's batch."""

    batch: int = 16
    context: int = 4096
    peak_rate: float = 3e-3
    warmup_steps: int = 150
    decay_from: float = 0.6  # share of the time after which the rate falls, to 0 at the end
    round_from: float = 0.35  # share of the time after which weights turn to their Q4_0 values ...
    round_to: float = 0.6  # ... until they are
    weight_decay: float = 0.1
    balance: float = 3e-2
    repeat_goal: float = 0.49  # of each layer but the first, which is left as it is: the mean is 45 %
    repeat_gain: float = 6e-4  # by which a step's shortfall changes the weight of the repeating term
    checkpoint_seconds: float = 120.0
    seed: int = 1


def main() -> None:
    """Train until the time is over, then measure and write the results."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("corpus", type=Path)
    arguments.add_argument("tokenizer", type=Path)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--minutes", type=float, default=5.5, help="of training, without preparation")
    arguments.add_argument("--batch", type=int, default=Settings.batch)
    arguments.add_argument("--context", type=int, default=Settings.context)
    arguments.add_argument("--no-compile", action="store_true")
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(batch=options.batch, context=options.context)
    training = Training(options.out, settings, options.minutes * 60, compiled=not options.no_compile)
    training.read(options.corpus, options.tokenizer)
    training.run()
    training.finish()


def read_tokens(corpus: Path, tokenizer_file: Path, cache: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """Return all training tokens as one row, documents shuffled, and the held-out ones by kind of text."""
    if not cache.is_file():
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        with lzma.open(corpus, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        np.random.default_rng(1).shuffle(records)
        parts: dict[str, list[np.ndarray]] = {"train": []}
        sizes: dict[str, int] = {}
        for start in range(0, len(records), 4096):
            some = records[start : start + 4096]
            for record, encoded in zip(
                some, tokenizer.encode_batch_fast([r["text"] for r in some]), strict=True
            ):
                name = record["kind"] if record["held_out"] else "train"
                parts.setdefault(name, []).append(np.array([*encoded.ids, END_ID], dtype=np.int16))
                sizes[name] = sizes.get(name, 0) + len(record["text"].encode())
        arrays = {name: np.concatenate(rows) for name, rows in parts.items()}
        np.savez(cache, **arrays, **{f"bytes_{name}": np.array(n) for name, n in sizes.items()})
    stored = np.load(cache)
    held_out = {name: torch.from_numpy(stored[name]) for name in stored.files if "train" not in name}
    return torch.from_numpy(stored["train"]), held_out


class Training:
    """The model, its optimizer, and where it stands."""

    def __init__(self, out: Path, settings: Settings, seconds: float, *, compiled: bool) -> None:
        torch.manual_seed(settings.seed)
        torch.set_float32_matmul_precision("high")
        self.out, self.settings, self.seconds = out, settings, seconds
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.model = DemoModel(Shape()).to(self.device)
        groups = [
            {
                "params": [p for p in self.model.parameters() if p.dim() > 1],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for p in self.model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=self.device == "cuda")
        self.losses = torch.compile(self._losses) if compiled else self._losses
        self.step, self.elapsed = 0, 0.0
        self.stick = torch.zeros(self.model.shape.n_layers, device=self.device)
        self.log: list[dict[str, Any]] = []
        self._load()

    def read(self, corpus: Path, tokenizer: Path) -> None:
        """Read the corpus into the device's memory."""
        train, self.held_out = read_tokens(corpus, tokenizer, self.out / "tokens.npz")
        self.train = train.to(self.device)
        print(f"{len(self.train):,} tokens to train on, device {self.device}", flush=True)

    def run(self) -> None:
        """Train from where it stands until the time is over."""
        saved = began = time.monotonic()
        before = self.elapsed
        while self.elapsed < self.seconds:
            self._one_step()
            now = time.monotonic()
            if self.step == 3 and before == 0.0:
                began, saved = now, now  # compiling is not training
            self.elapsed = before + now - began
            if now - saved > self.settings.checkpoint_seconds:
                self._save()
                saved = now

    def _one_step(self) -> None:
        s, progress = self.settings, min(1.0, self.elapsed / self.seconds)
        rate = s.peak_rate * min(1.0, (self.step + 1) / s.warmup_steps)
        rate *= min(1.0, (1 - progress) / (1 - s.decay_from))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        share = min(1.0, max(0.0, (progress - s.round_from) / (s.round_to - s.round_from)))
        starts = torch.randint(len(self.train) - s.context - 1, (s.batch, 1), device=self.device)
        rows = self.train[starts + torch.arange(s.context + 1, device=self.device)].long()
        at = {"device": self.device, "dtype": torch.float32}
        loss, balance, repeat, soft = self.losses(rows, torch.tensor(share, **at))
        total = loss + s.balance * balance - (self.stick * soft).mean()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % 10 == 0:
            self.stick = (self.stick + 10 * s.repeat_gain * (s.repeat_goal - repeat)).clamp(min=0)
            self.stick[0] = 0
        if self.step % 50 == 0 or self.step < 4:
            entry = {
                "step": self.step,
                "seconds": round(self.elapsed, 1),
                "loss": round(loss.item(), 4),
                "balance": round(balance.item(), 3),
                "repeat": [round(value, 3) for value in repeat.tolist()],
                "stick": [round(value, 4) for value in self.stick.tolist()],
                "norm": round(norm.item(), 3),
                "rate": rate,
                "rounded": round(share, 3),
            }
            self.log.append(entry)
            with (self.out / "log.jsonl").open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def _losses(self, rows: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return cross-entropy, load balance (1 is even), and by layer repeats and probability on them."""
        shape = self.model.shape
        outputs, probabilities, chosen = self.model(rows[:, :-1], share, self.dtype)
        logits = F.linear(outputs, self.model.head(share).to(self.dtype))
        loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        balances, repeats, softs = [], [], []
        for p, c in zip(probabilities, chosen, strict=True):
            picked = torch.zeros_like(p).scatter(-1, c, 1.0)
            share_of = picked.mean((0, 1)) / shape.n_used
            balances.append(shape.n_experts * (share_of * p.mean((0, 1))).sum())
            repeats.append((picked[:, 1:] * picked[:, :-1]).sum(-1).mean() / shape.n_used)
            softs.append((p[:, 1:] * picked[:, :-1]).sum(-1).mean())
        return loss, torch.stack(balances).mean(), torch.stack(repeats).detach(), torch.stack(softs)

    def finish(self) -> None:
        """Measure on held-out text and write what the export needs."""
        results: dict[str, Any] = {
            "shape": asdict(self.model.shape),
            "settings": asdict(self.settings),
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "steps": self.step,
            "seconds": round(self.elapsed, 1),
            "tokens_trained_on": self.step * self.settings.batch * self.settings.context,
            "tokens_of_corpus": len(self.train),
            "held_out": {},
            "log": self.log,
        }
        routing: dict[str, np.ndarray] = {}
        for kind in [name for name in self.held_out if not name.startswith("bytes_")]:
            tokens = self.held_out[kind]
            loss, chosen = self._measure(tokens)
            per_byte = len(tokens) / int(self.held_out[f"bytes_{kind}"]) / math.log(2)
            results["held_out"][kind] = {
                "nats_a_token": round(loss, 4),
                "bits_a_byte": round(loss * per_byte, 4),
                "tokens": len(tokens),
            }
            routing[kind] = chosen
            print(kind, results["held_out"][kind], flush=True)
        uses = np.stack([np.bincount(layer.ravel(), minlength=128) for layer in _by_layer(routing)])
        shares = uses / uses.sum(1, keepdims=True) * uses.shape[1]
        results["usage"] = {
            "most_over_mean": [round(float(row.max()), 2) for row in shares],
            "least_over_mean": [round(float(row.min()), 3) for row in shares],
        }
        (self.out / "training.json").write_text(json.dumps(results, indent=1))
        np.savez_compressed(self.out / "routing.npz", **routing)
        np.savez(self.out / "demo.npz", **self._weights())
        print("usage", results["usage"], flush=True)

    @torch.no_grad()
    def _measure(self, tokens: Tensor, at_once: int = 4096, most: int = 262_144) -> tuple[float, np.ndarray]:
        """Return the mean loss in nats and the experts chosen [tokens, layers, used] of the first 16,384."""
        total, n, chosen = 0.0, 0, []
        one = torch.tensor(1.0, device=self.device)
        for start in range(0, min(len(tokens), most) - 1, at_once):
            row = tokens[start : start + at_once + 1].long().to(self.device)[None]
            if row.shape[1] < 2:
                break
            outputs, _, picks = self.model(row[:, :-1], one, self.dtype)
            logits = F.linear(outputs, self.model.head(one).to(self.dtype)).float()
            total += F.cross_entropy(logits[0], row[0, 1:], reduction="sum").item()
            n += row.shape[1] - 1
            if start < 16_384:
                chosen.append(torch.stack([pick[0] for pick in picks], 1).byte().cpu().numpy())
        return total / n, np.concatenate(chosen)

    def _weights(self) -> dict[str, np.ndarray]:
        """Return the weights as the GGUF has them: float32 vectors and routers, Q4_0 scales and quants."""
        arrays: dict[str, np.ndarray] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.dim() == 1 or "ffn_gate_inp" in name:
                arrays[name] = parameter.detach().float().cpu().numpy()
            else:
                scale, quants = q4_0_parts(parameter.detach())
                packed = quants.byte()
                arrays[f"{name}:scale"] = scale.half().cpu().numpy()
                arrays[f"{name}:quants"] = (packed[:, :16] | packed[:, 16:] << 4).cpu().numpy()
                arrays[f"{name}:shape"] = np.array(parameter.shape)
        return arrays

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "stick": self.stick,
            "log": self.log,
        }
        unfinished = self.out / "checkpoint.pt.part"
        torch.save(state, unfinished)
        unfinished.replace(self.out / "checkpoint.pt")

    def _load(self) -> None:
        file = self.out / "checkpoint.pt"
        if file.is_file():
            state = torch.load(file, map_location=self.device)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.elapsed, self.stick = state["step"], state["elapsed"], state["stick"]
            self.log = state["log"]


def _by_layer(routing: dict[str, np.ndarray]) -> list[np.ndarray]:
    n_layers = next(iter(routing.values())).shape[1]
    return [np.concatenate([chosen[:, layer] for chosen in routing.values()]) for layer in range(n_layers)]


if __name__ == "__main__":
    main()
