"""Dask's graphs as tasks: `pip install "shoal-core[dask]"`.

>>> import dask.array as da
>>> from shoal.util.dask import enable_dask_on_ray
>>> with enable_dask_on_ray():
...     int(da.ones((1000, 1000), chunks=500).sum().compute())
1000000

Or for one call: `x.compute(scheduler=ray_dask_get)`. Each node of a graph is a task, whose inputs stay in the object store; a result that nothing needs any
more is freed while the graph still runs. `with dask.annotate(ray_remote_args={"num_cpus": 2})` gives options to the tasks of a part of the graph.
"""

from .callbacks import RayDaskCallback, local_ray_callbacks, unpack_ray_callbacks
from .scheduler import disable_dask_on_ray, enable_dask_on_ray, ray_dask_get, ray_dask_get_sync, ray_dask_persist

__all__ = [
    "RayDaskCallback", "disable_dask_on_ray", "enable_dask_on_ray", "local_ray_callbacks", "ray_dask_get", "ray_dask_get_sync", "ray_dask_persist",
    "unpack_ray_callbacks",
]  # fmt: skip
