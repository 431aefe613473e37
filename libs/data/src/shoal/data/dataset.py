"""`Dataset`: what a program does with data."""

from __future__ import annotations

import inspect
import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from . import compute as computes
from ._block.meta import Bundle
from ._block.tables import check_format
from ._ops import steps
from ._ops.arrange import SortKey
from ._ops.joining import KINDS, JoinSpec
from ._plan import logical
from ._plan.logical import Node
from .consumption import Consumption, Schema
from .exceptions import check_columns
from .expressions import Column, Expr, parse

if TYPE_CHECKING:
    from .grouped_data import GroupedData
    from .iterator import DataIterator

__all__ = ["Dataset", "MaterializedDataset", "Schema"]


def _seed(seed: int | None, where: str) -> int:
    # Drawn here and not in tasks: a task that is tried again must make the same choice.
    if seed is None:
        return random.SystemRandom().getrandbits(63)
    if not isinstance(seed, int):
        raise TypeError(f"{where}: seed must be a whole number, and is {seed!r}")
    return abs(seed)


class Dataset(Consumption):
    """A lazy, distributed collection of rows. Methods that transform give a new dataset and run nothing; those that consume run the plan.

    Rows keep their order, except where a method says otherwise. Made by `shoal.data.read_parquet`, `range`, `from_items` and so on.

    Example::

        import shoal.data

        ds = shoal.data.range(1000).map(lambda row: {"id": row["id"], "half": row["id"] / 2}).filter(lambda row: row["id"] % 3 == 0)
        print(ds.count(), ds.take(2))
    """

    # -- rows and batches
    def map_batches(
        self,
        fn: Any,
        *,
        batch_size: int | None = None,
        compute: Any = None,
        batch_format: str | None = "default",
        zero_copy_batch: bool = True,
        fn_args: Iterable[Any] | None = None,
        fn_kwargs: Mapping[str, Any] | None = None,
        fn_constructor_args: Iterable[Any] | None = None,
        fn_constructor_kwargs: Mapping[str, Any] | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: float | None = None,
        concurrency: int | tuple[int, int] | None = None,
        **ray_remote_args: Any,
    ) -> Dataset:
        """Applies a function to batches.

        Args:
            fn: a function of a batch that returns a batch (a dict of arrays, a pandas.DataFrame or a pyarrow.Table) or yields several; or a class whose
                objects are such functions: those are made once for each actor of a pool.
            batch_size: rows of a batch; None: whole blocks. Blocks are put together where they have fewer.
            batch_format: `"default"` or `"numpy"`: dict of arrays; `"pandas"`; `"pyarrow"`.
            zero_copy_batch: arrays may be read-only views of shared memory. False: they are writable copies.
            fn_args, fn_kwargs: more arguments of each call.
            fn_constructor_args, fn_constructor_kwargs: of the class.
            concurrency: tasks at the same time, for a function; actors, or least and most actors, for a class.
            compute: an ActorPoolStrategy or TaskPoolStrategy instead of concurrency.
            num_cpus, num_gpus, memory: of each task or actor; so are other options of `shoal.remote`.
        """
        where = "map_batches"
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ValueError(f"{where}: batch_size must be a positive number of rows or None, and is {batch_size!r}")
        form = check_format(batch_format)
        function = _function(fn, where, fn_args, fn_kwargs, fn_constructor_args, fn_constructor_kwargs)
        step = steps.MapBatches(function, batch_size, form, not zero_copy_batch, f"MapBatches({function.name})")
        return self._map(step, fn, compute, concurrency, where, batch_size, num_cpus=num_cpus, num_gpus=num_gpus, memory=memory, **ray_remote_args)

    def map(self, fn: Any, *, compute: Any = None, concurrency: int | tuple[int, int] | None = None, **options: Any) -> Dataset:
        """Applies a function to each row, a dict; it returns a dict. Arguments as in `map_batches`."""
        return self._map_rows("map", "Map", fn, compute, concurrency, **options)

    def flat_map(self, fn: Any, *, compute: Any = None, concurrency: int | tuple[int, int] | None = None, **options: Any) -> Dataset:
        """Applies a function to each row that returns a list of rows. Arguments as in `map_batches`."""
        return self._map_rows("flat_map", "FlatMap", fn, compute, concurrency, **options)

    def filter(
        self, fn: Any = None, expr: str | Expr | None = None, *, compute: Any = None, concurrency: int | tuple[int, int] | None = None, **options: Any
    ) -> Dataset:
        """Keeps the rows for which the function, or the expression, is true. An expression is much faster, and readers skip what it excludes.

        Example::

            ds.filter(expr="age >= 18 and city in ['Bern', 'Basel']")
        """
        if (fn is None) == (expr is None):
            raise ValueError("filter takes either a function or expr=...")
        if expr is None:
            return self._map_rows("filter", "Filter", fn, compute, concurrency, **options)
        if compute is not None or concurrency is not None or options:
            raise ValueError("filter(expr=...) takes no other arguments")
        wanted = parse(expr) if isinstance(expr, str) else expr
        if not isinstance(wanted, Expr):
            raise TypeError(f"filter: expr must be a string or an expression, and is {expr!r}")
        self._check(sorted(wanted.columns()), "filter")
        return self._with(logical.Map((self._plan,), steps.FilterExpression(wanted)))

    def _map_rows(self, kind: str, label: str, fn: Any, compute: Any, concurrency: Any, **options: Any) -> Dataset:
        where = kind
        names = ("fn_args", "fn_kwargs", "fn_constructor_args", "fn_constructor_kwargs")
        function = _function(fn, where, *(options.pop(name, None) for name in names))
        step = steps.RowSteps([steps.RowFunction(kind, function, f"{label}({function.name})")])
        return self._map(step, fn, compute, concurrency, where, None, **options)

    def _map(self, step: Any, fn: Any, compute: Any, concurrency: Any, where: str, min_rows: int | None, **options: Any) -> Dataset:
        pool, most = computes.resolve(fn, compute, concurrency, where)
        arguments = computes.remote_args(where, pool is not None, **options)
        return self._with(logical.Map((self._plan,), step, arguments, pool, most, min_rows))

    # -- columns
    def add_column(
        self, col: str, fn: Any, *, batch_format: str | None = "pandas", compute: Any = None, concurrency: int | None = None, **options: Any
    ) -> Dataset:
        """Adds a column that a function makes of each batch."""
        function = _function(fn, "add_column", None, None, None, None)
        if function.is_class:
            raise TypeError("add_column takes a function")
        step = steps.AddColumn(col, function, check_format(batch_format), f"AddColumn({col})")
        return self._map(step, fn, compute, concurrency, "add_column", None, **options)

    def with_column(self, column_name: str, expr: Expr) -> Dataset:
        """Adds a column, or replaces it, by an expression."""
        return self.with_columns({column_name: expr})

    def with_columns(self, exprs: Mapping[str, Expr]) -> Dataset:
        """Adds or replaces columns; each expression reads the columns as they were before."""
        outputs = []
        for name, expr in exprs.items():
            if not isinstance(expr, Expr):
                raise TypeError(f"with_column: the value of {name!r} must be an expression such as col('x') + 1 or lit(0), and is {expr!r}")
            self._check(sorted(expr.columns()), "with_column")
            outputs.append((name, expr))
        return self._with(logical.Map((self._plan,), steps.Project(outputs, True, f"WithColumn({', '.join(exprs)})")))

    def select_columns(self, cols: str | Sequence[str]) -> Dataset:
        """Only these columns, in this order."""
        names = _names(cols, "select_columns")
        self._check(names, "select_columns")
        return self._with(logical.Map((self._plan,), steps.Project([(name, Column(name)) for name in names], False, f"Select({', '.join(names)})")))

    def drop_columns(self, cols: str | Sequence[str]) -> Dataset:
        """Without these columns."""
        names = _names(cols, "drop_columns")
        schema = self._plan.schema()
        if schema is None:
            return self._with(logical.Map((self._plan,), steps.Drop(names)))
        check_columns(names, schema.names, "drop_columns")
        # With columns that are known, a selection: the readers then do not read the others.
        kept: list[tuple[str, Expr]] = [(name, Column(name)) for name in schema.names if name not in names]
        return self._with(logical.Map((self._plan,), steps.Project(kept, False, f"Drop({', '.join(names)})")))

    def rename_columns(self, names: Mapping[str, str] | Sequence[str]) -> Dataset:
        """New names: of some columns by a mapping, or of all by a list."""
        if isinstance(names, Mapping):
            new: Any = dict(names)
            self._check(new, "rename_columns")
        elif isinstance(names, Sequence) and not isinstance(names, str):
            new = list(names)
        else:
            raise TypeError(f"rename_columns takes a mapping or a list of names, and got {names!r}")
        values = new.values() if isinstance(new, dict) else new
        if not all(isinstance(name, str) and name for name in values) or len(set(values)) != len(list(values)):
            raise ValueError(f"rename_columns: new names must be different strings, and are {list(values)}")
        return self._with(logical.Map((self._plan,), steps.Rename(new)))

    # -- fewer rows
    def limit(self, limit: int) -> Dataset:
        """The first rows."""
        if not isinstance(limit, int) or limit < 0:
            raise ValueError(f"limit must be a number of rows, and is {limit!r}")
        return self._with(logical.Limit((self._plan,), limit))

    def random_sample(self, fraction: float, *, seed: int | None = None) -> Dataset:
        """Each row with the probability `fraction`."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"random_sample: fraction must be between 0 and 1, and is {fraction!r}")
        return self._with(logical.Map((self._plan,), steps.RandomSample(fraction, _seed(seed, "random_sample"))))

    # -- order and blocks
    def sort(self, key: str | Sequence[str], descending: bool | Sequence[bool] = False) -> Dataset:
        """Sorted by one or several columns; nulls come last. Rows with equal keys keep their order."""
        columns = _names(key, "sort")
        orders = [descending] * len(columns) if isinstance(descending, bool) else list(descending)
        if len(orders) != len(columns):
            raise ValueError(f"sort: {len(orders)} values of descending for {len(columns)} keys")
        self._check(columns, "sort")
        return self._with(logical.Sort((self._plan,), SortKey(tuple(columns), tuple(map(bool, orders)))))

    def random_shuffle(self, *, seed: int | None = None, num_blocks: int | None = None) -> Dataset:
        """All rows in random order; the same order for the same seed and blocks."""
        return self._with(logical.Shuffle((self._plan,), _seed(seed, "random_shuffle"), _blocks(num_blocks, "random_shuffle")))

    def randomize_block_order(self, *, seed: int | None = None) -> Dataset:
        """Blocks in random order, rows within as they are: cheap."""
        return self._with(logical.RandomizeBlocks((self._plan,), _seed(seed, "randomize_block_order")))

    def repartition(
        self,
        num_blocks: int | None = None,
        target_num_rows_per_block: int | None = None,
        *,
        shuffle: bool = False,
        keys: Sequence[str] | None = None,
        sort: bool = False,
    ) -> Dataset:
        """In `num_blocks` blocks, or in blocks of so many rows.

        Args:
            shuffle: spreads rows at random; else they keep their order.
            keys: rows with equal keys come into one block. With `sort` they are sorted there.
        """
        if (num_blocks is None) == (target_num_rows_per_block is None):
            raise ValueError("repartition takes either num_blocks or target_num_rows_per_block")
        _blocks(num_blocks, "repartition")
        _blocks(target_num_rows_per_block, "repartition", limit=None)
        if sort and not keys:
            raise ValueError("repartition(sort=True) needs keys")
        if shuffle:
            if keys or num_blocks is None:
                raise ValueError("repartition(shuffle=True) takes num_blocks, and no keys")
            return self.random_shuffle(seed=0, num_blocks=num_blocks)
        if keys:
            self._check(keys, "repartition")
            if num_blocks is None:
                raise ValueError("repartition by keys takes num_blocks")
        return self._with(logical.Repartition((self._plan,), num_blocks, target_num_rows_per_block, tuple(keys or ()), sort))

    # -- several datasets
    def union(self, *other: Dataset) -> Dataset:
        """The rows of all, one dataset after the other.

        Raises:
            SchemaMismatchError: the same column has types that do not go together, where this is known beforehand.
        """
        for ds in other:
            _is_dataset(ds, "union")
        everything = [self, *other]
        _check_types([ds._plan.schema() for ds in everything])
        return self._with(logical.Union(tuple(ds._plan for ds in everything)))

    def zip(self, *other: Dataset) -> Dataset:
        """The columns of all side by side, row by row; names that are taken get `_1`, `_2`, … They must have equally many rows."""
        from .exceptions import SchemaMismatchError

        for ds in other:
            _is_dataset(ds, "zip")
        counts = [ds._plan.rows() for ds in (self, *other)]
        if len({count for count in counts if count is not None}) > 1:
            raise SchemaMismatchError(f"zip: the datasets have different numbers of rows: {', '.join(map(str, counts))}")
        return self._with(logical.Zip(tuple(ds._plan for ds in (self, *other))))

    def join(
        self,
        ds: Dataset,
        join_type: str,
        num_partitions: int | None = None,
        on: str | Sequence[str] = ("id",),
        right_on: str | Sequence[str] | None = None,
        left_suffix: str | None = None,
        right_suffix: str | None = None,
    ) -> Dataset:
        """Joined on equal keys.

        Args:
            join_type: inner, left_outer, right_outer, full_outer, left_semi, right_semi, left_anti or right_anti.
            num_partitions: blocks of the result where both sides are large; None: by their size. A small right side is sent whole to the left side's tasks.
            on, right_on: keys of the left and the right side; by default they have the same names.
            left_suffix, right_suffix: of other columns that both sides have.
        """
        _is_dataset(ds, "join")
        if join_type not in KINDS:
            raise ValueError(f"join: join_type must be one of {', '.join(KINDS)}, and is {join_type!r}")
        left = _names(on, "join(on=...)")
        right = left if right_on is None else _names(right_on, "join(right_on=...)")
        if len(left) != len(right):
            raise ValueError(f"join: {len(left)} keys on the left {left}, {len(right)} on the right {right}")
        self._check(left, "join, left side")
        ds._check(right, "join, right side")
        spec = JoinSpec(join_type, left, right, left_suffix, right_suffix)
        return self._with(logical.Join((self._plan, ds._plan), spec, _blocks(num_partitions, "join")))

    def groupby(self, key: str | Sequence[str] | None, num_partitions: int | None = None) -> GroupedData:
        """Groups of rows with equal values in one or several columns; None: one group of all."""
        from .grouped_data import GroupedData

        keys = [] if key is None else _names(key, "groupby")
        self._check(keys, "groupby")
        return GroupedData(self, keys, _blocks(num_partitions, "groupby"))

    # -- parts
    def split(self, n: int, *, equal: bool = False) -> list[MaterializedDataset]:
        """`n` datasets of consecutive blocks; `equal`: of equally many rows, up to n - 1 rows are left out."""
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"split takes a positive number of datasets, and got {n!r}")
        made = self.materialize()
        total = made.count()
        if equal:
            return made._cut([total // n * i for i in range(n + 1)])
        bundles = made._bundles
        if len(bundles) < n:
            return made._cut([-(-total * i // n) for i in range(n + 1)])
        edges = [-(-len(bundles) * i // n) for i in range(n + 1)]
        return [self._of_bundles(bundles[start:end]) for start, end in itertools.pairwise(edges)]

    def split_at_indices(self, indices: Sequence[int]) -> list[MaterializedDataset]:
        """Cut before these rows: one dataset more than indices."""
        places = list(indices)
        if not places or any(not isinstance(i, int) or i < 0 for i in places) or places != sorted(places):
            raise ValueError(f"split_at_indices takes ascending numbers of rows, and got {places!r}")
        made = self.materialize()
        total = made.count()
        return made._cut([0, *(min(i, total) for i in places), total])

    def split_proportionately(self, proportions: Sequence[float]) -> list[MaterializedDataset]:
        """One dataset for each of these parts of the whole, and one for the rest."""
        parts = list(proportions)
        if not parts or any(part <= 0 for part in parts) or sum(parts) >= 1:
            raise ValueError(f"split_proportionately takes parts above 0 whose sum is below 1, and got {parts!r}")
        made = self.materialize()
        total = made.count()
        return made.split_at_indices([int(total * sum(parts[: i + 1])) for i in range(len(parts))])

    def train_test_split(
        self, test_size: int | float, *, shuffle: bool = False, seed: int | None = None, stratify: str | None = None
    ) -> tuple[MaterializedDataset, MaterializedDataset]:
        """Two datasets.

        Args:
            test_size: of the second: a part of the rows (float), or so many (int).
            shuffle: whether rows are shuffled before; `seed` makes it the same each time.
            stratify: a column each of whose values gets that part of its own rows, rounded up. Rows are then in the order of these groups.

        Raises:
            ValueError: a size that leaves one of the two without rows.
        """
        made = (self.random_shuffle(seed=seed) if shuffle else self).materialize()
        if stratify is not None:
            made._check([stratify], "train_test_split(stratify=...)")
        total = made.count()
        if isinstance(test_size, float):
            if not 0 < test_size < 1:
                raise ValueError(f"train_test_split: a test_size that is a float must be between 0 and 1, and is {test_size}")
            rows = math.ceil(total * test_size)
        else:
            if not 0 < test_size < total:
                raise ValueError(f"train_test_split: test_size must be between 0 and the {total} rows there are, and is {test_size}")
            rows = test_size
        if stratify is not None:
            return made._stratified(stratify, test_size if isinstance(test_size, float) else test_size / total)
        train, test = made.split_at_indices([total - rows])
        return train, test

    def _stratified(self, column: str, part: float) -> tuple[MaterializedDataset, MaterializedDataset]:
        mark = "_in_test"
        while mark in (self.columns() or ()):
            mark = f"_{mark}"

        def marked(group: pa.Table) -> pa.Table:
            train = int(group.num_rows * (1 - part) + 1e-9)  # a hair of room: 10 * (1 - 0.1) in floats
            return group.append_column(mark, pa.array([False] * train + [True] * (group.num_rows - train)))

        made = self.groupby(column).map_groups(marked, batch_format="pyarrow").materialize()
        parts = [made.filter(expr=expr).drop_columns([mark]).materialize() for expr in (~Column(mark), Column(mark))]
        return parts[0], parts[1]

    def streaming_split(self, n: int, *, equal: bool = False, locality_hints: list[Any] | None = None) -> list[DataIterator]:
        """`n` iterators over disjoint parts of one execution, for as many workers at the same time.

        Each iteration over all of them is an epoch, which begins when all have begun it.

        Args:
            equal: all get equally many rows; up to n - 1 are left out.
            locality_hints: for each iterator the id of the node where it is used: it is given blocks that lie there first.
        """
        import shoal

        from ._run.split import SplitCoordinator, SplitIterator

        if not isinstance(n, int) or n < 1:
            raise ValueError(f"streaming_split takes a positive number of iterators, and got {n!r}")
        if locality_hints is not None and len(locality_hints) != n:
            raise ValueError(f"streaming_split: {len(locality_hints)} locality_hints for {n} iterators")
        options = {"num_cpus": 0, "max_concurrency": 2 * n + 2}
        coordinator = shoal.remote(SplitCoordinator).options(**options).remote(self._plan, self.context, n, equal, locality_hints)
        return [SplitIterator(coordinator, i, n, self) for i in range(n)]

    # -- for the library
    def _with(self, plan: Node) -> Dataset:
        return Dataset(plan, self.context)

    def _check(self, columns: Iterable[str], where: str) -> None:
        """Raises ColumnNotFoundError, if the columns are known before anything runs."""
        schema = self._plan.schema()
        if schema is not None and len(schema):
            check_columns(columns, schema.names, where)

    def _of_bundles(self, bundles: Sequence[Bundle]) -> MaterializedDataset:
        if not bundles and isinstance(self, MaterializedDataset):
            raise AssertionError("a part needs a block, if only an empty one")
        return MaterializedDataset(logical.Blocks((), tuple(bundles)), self.context)


class MaterializedDataset(Dataset):
    """A dataset whose blocks are in the object store."""

    @property
    def _bundles(self) -> list[Bundle]:
        assert isinstance(self._plan, logical.Blocks)
        return list(self._plan.bundles)

    def num_blocks(self) -> int:
        return len(self._bundles)

    def _cut(self, edges: list[int]) -> list[MaterializedDataset]:
        """Parts between these rows."""
        from ._plan.physical import row_cuts
        from ._run.slicing import slice_block

        made = []
        for start, end in itertools.pairwise(edges):
            bundles, cuts = row_cuts(self._bundles, start, end)
            parts = [slice_block(bundle, *(cut.rows or (0, 0)), wait=False) for bundle, cut in zip(bundles, cuts, strict=True)]
            made.append(self._of_bundles(parts))
        return made


def _function(fn: Any, where: str, args: Any, kwargs: Any, constructor_args: Any, constructor_kwargs: Any) -> steps.UserFunction:
    if not callable(fn):
        raise TypeError(f"{where} takes a function or a class, and got {fn!r}")
    call = fn.__call__ if isinstance(fn, type) else fn
    if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call):
        raise TypeError(f"{where} takes functions that are not async, and {getattr(fn, '__name__', fn)!r} is")
    if (constructor_args or constructor_kwargs) and not isinstance(fn, type):
        raise ValueError(f"{where}: fn_constructor_args and fn_constructor_kwargs are for classes, and {getattr(fn, '__name__', fn)!r} is a function")
    return steps.UserFunction(fn, tuple(args or ()), dict(kwargs or {}), tuple(constructor_args or ()), dict(constructor_kwargs or {}))


def _names(given: str | Sequence[str], where: str) -> list[str]:
    names = [given] if isinstance(given, str) else list(given)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where} takes a column's name or several, and got {given!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"{where}: a column is named twice in {names}")
    return names


def _blocks(number: int | None, where: str, limit: int | None = None) -> int | None:
    if number is not None and (not isinstance(number, int) or number < 1 or (limit is not None and number > limit)):
        raise ValueError(f"{where}: a positive number is wanted, and {number!r} was given")
    return number


def _is_dataset(value: Any, where: str) -> None:
    if not isinstance(value, Dataset):
        raise TypeError(f"{where} takes datasets, and got {type(value).__name__}")


def _check_types(schemas: list[pa.Schema | None]) -> None:
    from .exceptions import SchemaMismatchError

    seen: dict[str, pa.Schema] = {}
    for number, schema in enumerate(schemas):
        for field in schema or ():
            if field.name in seen:
                try:
                    pa.unify_schemas([pa.schema([seen[field.name]]), pa.schema([field])], promote_options="permissive")
                except (pa.ArrowInvalid, pa.ArrowTypeError):
                    if isinstance(field.type, pa.BaseExtensionType) or isinstance(seen[field.name].type, pa.BaseExtensionType):
                        continue
                    raise SchemaMismatchError(
                        f"union: column {field.name!r} is {seen[field.name].type} in one dataset and {field.type} "
                        f"in dataset {number + 1}; cast it with with_column"
                    ) from None
            else:
                seen[field.name] = field
