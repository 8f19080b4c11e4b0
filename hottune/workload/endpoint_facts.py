"""What one request to an OpenAI-compatible endpoint turned out as, timed by the client."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Route = Literal["completions", "chat/completions"]


class ServerTimes(BaseModel):
    """The server's own times, where it tells them (llama-server does): beside the client's, never instead."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_tokens: int
    prefill_ms: float
    output_tokens: int
    decode_ms: float


class EndpointSample(BaseModel):
    """One request, as the client saw its stream (raw sample)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workload: str = Field(description="name of the workload the request belongs to: chat, document, code")
    warmup: bool = Field(description="true for the cold request(s), which no mean includes")
    asked_prompt_tokens: int = Field(description="what the workload says")
    asked_output_tokens: int
    prompt_tokens: int | None = Field(description="by the server's usage; None: it told none")
    cached_tokens: int = Field(default=0, description="of these, what the server had from earlier requests")
    output_tokens: int
    counted: Literal["usage", "chunks"] = Field(
        description="output tokens by the server's usage, or, where it sends none, streamed chunks"
    )
    finish_reason: str = Field(default="", description="why it ended: length, stop, ...")
    ttft_ms: float = Field(description="from sending the request to the first chunk with text")
    decode_ms: float = Field(description="from the first chunk with text to the last")
    turn_s: float = Field(description="wall-clock of the whole request")
    started_s: float = Field(description="when it was sent, seconds after the first of its pass")
    chunk_ms: list[float] = Field(description="gap before each chunk with text after the first")
    text_sha256: str = Field(description="sha256 of the generated text, reasoning included")
    server: ServerTimes | None = Field(
        default=None, description="the server's own times, where it tells them"
    )

    @property
    def processed_tokens(self) -> int | None:
        """Prompt tokens that really were processed."""
        return None if self.prompt_tokens is None else self.prompt_tokens - self.cached_tokens

    @property
    def chunks(self) -> int:
        """Chunks with text."""
        return len(self.chunk_ms) + 1
