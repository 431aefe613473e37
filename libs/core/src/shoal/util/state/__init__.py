"""What the cluster has and does, as records: nodes, actors, tasks, jobs, workers, placement groups, objects; logs; counts.

Asked of the head's HTTP server, so also from a process that is not connected (`address`; default: the connected cluster, else this host's).

>>> from shoal.util.state import list_tasks
>>> for task in list_tasks(filters=[("state", "=", "FAILED")]):
...     print(task.name, task.error_message)
"""

from .api import (
    get_actor,
    get_job,
    get_log,
    get_node,
    get_objects,
    get_placement_group,
    get_task,
    get_worker,
    list_actors,
    list_jobs,
    list_logs,
    list_nodes,
    list_objects,
    list_placement_groups,
    list_tasks,
    list_workers,
    summarize_actors,
    summarize_objects,
    summarize_tasks,
)
from .records import RayStateApiException, Record

__all__ = [
    "RayStateApiException", "Record", "get_actor", "get_job", "get_log", "get_node", "get_objects", "get_placement_group", "get_task", "get_worker",
    "list_actors", "list_jobs", "list_logs", "list_nodes", "list_objects", "list_placement_groups", "list_tasks", "list_workers", "summarize_actors",
    "summarize_objects", "summarize_tasks",
]  # fmt: skip
