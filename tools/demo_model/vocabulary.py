"""Train the demo model's tokenizer: byte-level BPE that splits as llama.cpp's pre-tokenizer `qwen2` does.

python vocabulary.py CORPUS.jsonl.xz OUT_tokenizer.json
"""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SIZE = 10240
END = "<|endoftext|>"
UNUSED = "<|unused|>"  # occurs in no text, so the model learns never to choose it
_EVERY = 3  # document is learnt from

# The pattern by which llama.cpp splits text for `tokenizer.ggml.pre = qwen2`.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(corpus: Path, out: Path) -> None:
    """Learn the merges from a third of the documents that are not held out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[END, UNUSED],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(corpus), trainer)
    tokenizer.save(str(out))


def _texts(corpus: Path) -> Iterator[str]:
    with lzma.open(corpus, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file):
            record = json.loads(line)
            if number % _EVERY == 0 and not record["held_out"]:
                yield record["text"]


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
