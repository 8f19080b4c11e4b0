"""The JSON Schema of result files, for programs that read them without hottune.

`python -m hottune.report.json_schema > docs/result.schema.json` writes the published one.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from hottune.report.schema import SCHEMA_VERSION, Report


def json_schema() -> dict[str, Any]:
    """Return the schema of a result file as plain data."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"hottune {SCHEMA_VERSION}"}
    return Report.model_json_schema(mode="serialization") | head


def schema_text() -> str:
    """Return the schema as it is published: indented JSON."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
