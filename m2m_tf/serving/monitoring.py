"""What the local server counts, for Prometheus."""

import contextlib
import dataclasses
import time

import prometheus_client

REQUESTS = prometheus_client.Counter(
    "m2m_requests", "Requests answered.", ["api", "method", "status"]
)
SECONDS = prometheus_client.Histogram(
    "m2m_request_seconds",
    "Seconds from a request's arrival to its answer.",
    ["api", "method"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
IN_FLIGHT = prometheus_client.Gauge(
    "m2m_requests_in_flight", "Requests being answered.", ["api"]
)


@dataclasses.dataclass
class Observation:
    """One request; who answers it sets what is not known at its start."""

    method: str
    status: str = "OK"


@contextlib.contextmanager
def observed(api: str, method: str):
    """Counts and times what is done inside."""
    seen = Observation(method)
    started = time.perf_counter()
    IN_FLIGHT.labels(api).inc()
    try:
        yield seen
    except BaseException:
        seen.status = "CANCELLED"
        raise
    finally:
        IN_FLIGHT.labels(api).dec()
        REQUESTS.labels(api, seen.method, seen.status).inc()
        SECONDS.labels(api, seen.method).observe(time.perf_counter() - started)
