"""What Serve raises, under Ray's names.

::

    RayServeException (also named ServeError)
    ├── BackPressureError             more requests wait than `max_queued_requests` allows; HTTP 503
    ├── DeploymentUnavailableError    the deployment has gone, or no version of it ever started; HTTP 503
    ├── DeploymentFailedError         also a RuntimeError: `serve.run` could not start the application; names the deployment and the error
    ├── RequestCancelledError         also a TaskCancelledError: the caller cancelled the request, or its client went away
    └── ServeConfigError              also a ValueError: an option, a name or an argument that cannot be used

What a deployment's own code raises reaches the caller of a handle as the class that it is (see `shoal.exceptions.RayTaskError`).
"""

from __future__ import annotations

from shoal.exceptions import TaskCancelledError


class RayServeException(Exception):
    """The root of what Serve itself raises."""


ServeError = RayServeException


class BackPressureError(RayServeException):
    """The deployment's queue in this process is full."""

    def __init__(self, num_queued_requests: int, max_queued_requests: int, deployment: str = "") -> None:
        super().__init__(num_queued_requests, max_queued_requests, deployment)
        self.num_queued_requests = num_queued_requests
        self.max_queued_requests = max_queued_requests
        self.deployment = deployment

    @property
    def message(self) -> str:
        of = f" of {self.deployment}" if self.deployment else ""
        return (f"Request dropped due to backpressure: {self.num_queued_requests} requests wait already for a replica{of}, max_queued_requests="
                f"{self.max_queued_requests}. Try again later, or raise num_replicas, max_ongoing_requests or max_queued_requests.")  # fmt: skip

    def __str__(self) -> str:
        return self.message


class DeploymentUnavailableError(RayServeException):
    """Nobody can answer: the deployment does not exist (any more), or none of its replicas ever started."""


class DeploymentFailedError(RayServeException, RuntimeError):
    """An application did not come up."""


class RequestCancelledError(RayServeException, TaskCancelledError):
    """The request was cancelled before it ended."""

    def __init__(self, request_id: str = "") -> None:
        TaskCancelledError.__init__(self, None, f"Request {request_id} was cancelled.")
        self.request_id = request_id

    def __reduce__(self) -> tuple[type[RequestCancelledError], tuple[str]]:
        return RequestCancelledError, (self.request_id,)


class ServeConfigError(RayServeException, ValueError):
    """Something given by the user that cannot be used."""
