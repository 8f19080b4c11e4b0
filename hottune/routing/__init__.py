"""Which experts a model's router chooses: traces, their statistics, and a generator of them."""

from hottune.routing.trace import Choices, Layer, Trace, TraceFormatError, read_trace

__all__ = ["Choices", "Layer", "Trace", "TraceFormatError", "read_trace"]
