"""A protobuf request as OTLP/JSON, written by the rules of the specification and not by our reader's code."""

import base64
import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message


def as_json(request: Message) -> bytes:
    document = json_format.MessageToDict(request, use_integers_for_enums=True)
    return json.dumps(_hex_ids(document), ensure_ascii=False).encode()


def _hex_ids(node: Any) -> Any:
    if isinstance(node, list):
        return [_hex_ids(item) for item in node]
    if isinstance(node, dict):
        return {
            key: base64.b64decode(value).hex() if key in ("traceId", "spanId", "parentSpanId") else _hex_ids(value)
            for key, value in node.items()
        }
    return node
