"""The JSON Schemas of result files, for programs that read them without hottune.

`python -m hottune.report.json_schema > docs/result.schema.json` writes the published one of studies;
`... json_schema endpoint > docs/endpoint.schema.json` that of endpoints.
"""

from __future__ import annotations

import json
import sys

from pydantic import BaseModel

from hottune.report.endpoint import ENDPOINT_SCHEMA_VERSION, EndpointResult
from hottune.report.schema import SCHEMA_VERSION, Report


def schema_text() -> str:
    """Return the schema of a study's result file as it is published: indented JSON."""
    return _text(Report, f"hottune {SCHEMA_VERSION}")


def endpoint_schema_text() -> str:
    """Return the schema of an endpoint's result file as it is published: indented JSON."""
    return _text(EndpointResult, f"hottune endpoint {ENDPOINT_SCHEMA_VERSION}")


def _text(model: type[BaseModel], title: str) -> str:
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return (
        json.dumps(model.model_json_schema(mode="serialization") | head, indent=2, ensure_ascii=False) + "\n"
    )


if __name__ == "__main__":
    sys.stdout.write(endpoint_schema_text() if sys.argv[1:] == ["endpoint"] else schema_text())
