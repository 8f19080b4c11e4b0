"""Workload: real text to process and the lengths to process it at."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Request(BaseModel):
    """One request: a text, how much of it, and how much to generate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(description="name of a shipped text: lighthouses, code-cpp, chat-bread, ...")
    kind: str = Field(default="", description="what it stands for in a mix: chat, document or code")
    prompt_tokens: int = Field(description="the text is cut to this many tokens by the model's tokenizer")
    output_tokens: int = Field(description="tokens to generate; end-of-sequence is ignored")


class Workload(BaseModel):
    """A named mix of requests, sent one after another to one server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="chat, document, code or mixed")
    requests: tuple[Request, ...]
    warmup_requests: int = Field(default=1, description="leading requests that count as cold")
    seed: int = 0
    sha256: str = Field(description="hash over the texts used and all lengths")
