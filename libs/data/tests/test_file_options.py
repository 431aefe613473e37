"""Options of the tasks that read and write files, and arguments that only a worker can make."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
import shoal.data

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_options_of_the_tasks_may_be_given_in_both_ways(tmp_path, kind):
    path = str(tmp_path / "rows")
    getattr(shoal.data.range(10), f"write_{kind}")(path, ray_remote_args={"num_cpus": 1})
    read = getattr(shoal.data, f"read_{kind}")
    assert read(path, ray_remote_args={"num_cpus": 1}).sum("id") == 45
    assert read(path, num_cpus=1, ray_remote_args={"num_cpus": 10_000}).sum("id") == 45, "what is named goes before"
    with pytest.raises((TypeError, ValueError), match="spoons"):
        getattr(shoal.data.range(10), f"write_{kind}")(path, ray_remote_args={"spoons": 1})


def test_arguments_that_cannot_be_pickled_are_made_where_the_files_are_written(tmp_path):
    def options():
        from pyarrow import csv

        return {"write_options": csv.WriteOptions(include_header=False)}

    shoal.data.range(3).write_csv(str(tmp_path), arrow_csv_args_fn=options)
    assert sorted("".join(path.read_text() for path in tmp_path.glob("*.csv")).split()) == ["0", "1", "2"]
    shoal.data.range(3).write_parquet(str(tmp_path / "p"), arrow_parquet_args_fn=lambda: {"compression": "zstd"})
    file = next((tmp_path / "p").glob("*.parquet"))
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"
