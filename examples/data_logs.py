"""Web logs and a table of users: read, filtered, grouped, joined, and written, one folder for each country.

python examples/data_logs.py                       # 200,000 generated requests, a private cluster
python examples/data_logs.py --requests 5000000
python examples/data_logs.py --out /tmp/report     # keeps what is written
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shoal
import shoal.data
from shoal.data.aggregate import Count, Mean, Quantile, Sum
from shoal.data.expressions import col

USERS = 500
COUNTRIES = ("CH", "DE", "FR", "IT")


def generate(folder: Path, requests: int) -> None:
    """Requests in eight Parquet files, users in a file of JSON lines."""
    random = np.random.default_rng(7)
    (folder / "requests").mkdir()
    for day in range(8):
        n = requests // 8
        table = pa.table(
            {
                "user": random.integers(0, USERS, n),
                "status": random.choice([200, 200, 200, 304, 404, 500], n),
                "bytes": random.integers(200, 90_000, n),
                "seconds": random.gamma(2.0, 0.05, n),
            }
        )
        pq.write_table(table, folder / "requests" / f"day-{day}.parquet")
    users = [{"user": i, "country": COUNTRIES[i % len(COUNTRIES)], "plan": "paid" if i % 5 == 0 else "free"} for i in range(USERS)]
    (folder / "users.jsonl").write_text("\n".join(map(json.dumps, users)))


def report(folder: Path, out: Path) -> shoal.data.Dataset:
    """For each user with failed requests: how many, how slow they were, and who it is."""
    requests = shoal.data.read_parquet(str(folder / "requests"))
    users = shoal.data.read_json(str(folder / "users.jsonl"))
    failed = requests.filter(expr=col("status") >= 400)  # the reader leaves out what does not match
    by_user = failed.groupby("user").aggregate(Count(alias_name="failed"), Mean("seconds"), Quantile("seconds", q=0.95, alias_name="p95"), Sum("bytes"))
    table = by_user.join(users, "inner", on="user").with_column("megabytes", col("sum(bytes)") / 1e6).drop_columns("sum(bytes)")
    table.write_parquet(str(out), partition_cols=["country"])
    return shoal.data.read_parquet(str(out))


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--requests", type=int, default=200_000)
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary, shoal.init(include_dashboard=False):
        folder = Path(temporary)
        generate(folder, given.requests)
        began = time.perf_counter()
        written = report(folder, given.out or folder / "report")
        print(f"{given.requests:,} requests in {time.perf_counter() - began:.2f} s: {written.count()} users had failed ones\n")
        for row in written.sort("p95", descending=True).take(3):
            print(
                f"  user {row['user']:>4} ({row['country']}, {row['plan']}): {row['failed']} failed, 95 % within {row['p95']:.3f} s, {row['megabytes']:.1f} MB"
            )
        print("\nfailed requests by country:")
        for row in written.groupby("country").sum("failed").take_all():
            print(f"  {row['country']}  {row['sum(failed)']:>8,}")


if __name__ == "__main__":
    main()
