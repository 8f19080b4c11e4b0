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
    offset_tokens: int = Field(default=0, ge=0, description="tokens of the text before the part that is sent")


class Workload(BaseModel):
    """A named mix of requests to one server.

    They are sent in waves of `parallel` requests; a wave starts when all of the one before are answered.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="chat, document, code or mixed")
    requests: tuple[Request, ...]
    parallel: int = Field(default=1, ge=1, description="requests in flight at once")
    warmup_requests: int = Field(default=1, description="leading requests that count as cold")
    seed: int = 0
    sha256: str = Field(description="hash over the texts used and all lengths")
