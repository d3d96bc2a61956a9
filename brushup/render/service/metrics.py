"""The metrics of the render service."""

from typing import get_args

import prometheus_client

from brushup.render.job import FailureKind, RenderResult


class Metrics:
    """The metrics of the service, for Prometheus."""

    def __init__(self):
        registry = self.registry = prometheus_client.CollectorRegistry()
        self.queued = prometheus_client.Gauge("brushup_jobs_waiting", "Jobs not answered yet", registry=registry)
        self.images = prometheus_client.Counter("brushup_images", "Images rendered and scored", registry=registry)
        self.failures = prometheus_client.Counter("brushup_failures", "Jobs that failed", ["kind"], registry=registry)
        for kind in get_args(FailureKind):
            self.failures.labels(kind)  # each is there, as 0, from the start
        self.retries = prometheus_client.Counter("brushup_retries", "Jobs sent to another replica", registry=registry)
        sizes, seconds = (1, 2, 4, 8, 16, 32, 64, 128), (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
        self.batches = prometheus_client.Histogram(
            "brushup_batch_size", "Images rendered at once", buckets=sizes, registry=registry
        )
        self.seconds = prometheus_client.Histogram(
            "brushup_job_seconds", "From request to result", buckets=seconds, registry=registry
        )

    def count(self, results: list[RenderResult], seconds: float) -> None:
        """Count the results, which came so many seconds after the request."""
        for result in results:
            self.seconds.observe(seconds)
            (self.failures.labels(result.kind) if result.error else self.images).inc()

    def text(self) -> bytes:
        """Return the metrics as Prometheus reads them."""
        return prometheus_client.generate_latest(self.registry)
