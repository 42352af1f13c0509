"""What the extension remembers of series."""

import subprocess
import sys

import psutil
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from pipeline import native, otlp
from tests.native.both import demand_built
from tests.otlp.decode import ORIGIN

SERIES, A_REQUEST = 300_000, 1000  # without a limit over 50 MB of either kind
MOST_MB = 48  # 32 of a thread, and what the allocator makes of them


@pytest.mark.parametrize("metrics", [1, SERIES])
def test_series_without_end_take_little_memory(metrics: int) -> None:
    """Clients may invent series for ever, of one metric or each of its own: memory stays within 48 MB."""
    demand_built()
    ran = subprocess.run([sys.executable, "-m", __name__, str(metrics)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < MOST_MB


def main(metrics: int) -> None:
    """Print how much memory grew at most, in MB."""
    native.choose("native")
    process, base, most = psutil.Process(), 0, 0
    for first in range(0, SERIES, A_REQUEST):
        otlp.encode("metrics", _request(first, metrics), ORIGIN, partitions=3)
        size = process.memory_info().rss
        base = base or size
        most = max(most, size - base)
    print(most / 1e6)


def _request(first: int, metrics: int) -> bytes:
    message = ExportMetricsServiceRequest()
    scope = message.resource_metrics.add().scope_metrics.add()
    for number in range(first, first + A_REQUEST):
        if not scope.metrics or metrics > 1:
            scope.metrics.add(name=f"metric.{number % metrics}")
        point = scope.metrics[-1].gauge.data_points.add(time_unix_nano=number, as_int=number)
        point.attributes.add(key="series").value.string_value = str(number)
    return message.SerializeToString()


if __name__ == "__main__":
    main(int(sys.argv[1]))
