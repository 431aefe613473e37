"""Modin on its Ray engine gives what pandas gives."""

import os
import tempfile

import modin.config as cfg
import numpy as np
import pandas

cfg.Engine.put("ray")
cfg.CpuCount.put(2)
cfg.NPartitions.put(2)
import modin.pandas as pd

rng = np.random.default_rng(0)
rows = 20_000
plain = pandas.DataFrame({"k": rng.integers(0, 50, rows), "x": rng.random(rows), "s": rng.choice(list("abc"), rows)})
frame = pd.DataFrame(plain)
path = os.path.join(tempfile.mkdtemp(), "rows.csv")
plain.to_csv(path, index=False)
CASES = {
    "group": lambda p, d: d.groupby("k").x.mean(),
    "sort": lambda p, d: d.sort_values("x").reset_index(drop=True),
    "merge": lambda p, d: d.merge(d.groupby("k", as_index=False).x.sum().rename(columns={"x": "total"}), on="k"),
    "apply": lambda p, d: d.x.apply(lambda value: value * 2),
    "describe": lambda p, d: d.describe(),
    "read_csv": lambda p, d: p.read_csv(path),
    "pivot": lambda p, d: d.pivot_table(index="k", columns="s", values="x", aggfunc="sum"),
    "concat": lambda p, d: p.concat([d, d]).drop_duplicates(),
    "count": lambda p, d: d.s.value_counts().sort_index(),
}
for case in CASES.values():
    ours, theirs = case(pd, frame)._to_pandas(), case(pandas, plain)
    check = pandas.testing.assert_series_equal if isinstance(theirs, pandas.Series) else pandas.testing.assert_frame_equal
    check(ours, theirs)
print(f"{len(CASES)} operations agree")
