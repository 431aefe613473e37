"""`multiprocessing.Pool` on a whole cluster.

>>> from shoal.util.multiprocessing import Pool           # doctest: +SKIP
>>> with Pool(processes=4) as pool:                       # doctest: +SKIP
...     pool.map(abs, range(-3, 3))
[3, 2, 1, 0, 1, 2]
"""

from multiprocessing import JoinableQueue, TimeoutError

from .pool import AsyncResult, IMapIterator, IMapUnorderedIterator, Pool

__all__ = ["AsyncResult", "IMapIterator", "IMapUnorderedIterator", "JoinableQueue", "Pool", "TimeoutError"]
