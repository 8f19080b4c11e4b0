"""Which experts a model's router chooses: traces that the device wrote."""

from hottune.routing.trace import Choices, Layer, Trace, TraceFormatError, read_trace

__all__ = ["Choices", "Layer", "Trace", "TraceFormatError", "read_trace"]
