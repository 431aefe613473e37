"""Sources and sinks of your own: for `shoal.data.read_datasource` and `Dataset.write_datasink`.

Example::

    class Squares(Datasource):
        def get_read_tasks(self, parallelism, per_task_row_limit=None, data_context=None):
            def read(start):
                yield pyarrow.table({"square": [n * n for n in range(start, start + 10)]})

            return [ReadTask(functools.partial(read, start), BlockMetadata(num_rows=10)) for start in range(0, 100, 10)]
"""

from .datasink import Datasink, WriteResult
from .datasource import BlockMetadata, Datasource, ReadTask, TaskContext

__all__ = ["BlockMetadata", "Datasink", "Datasource", "ReadTask", "TaskContext", "WriteResult"]
