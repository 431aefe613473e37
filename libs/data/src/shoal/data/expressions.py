"""Expressions over columns: for `filter`, `with_column` and the readers, which evaluate them before they decode what is not needed.

Example::

    from shoal.data.expressions import col, lit

    ds.filter(expr=(col("age") >= 18) & col("name").is_not_null()).with_column("year", lit(2026) - col("age"))
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .exceptions import check_columns

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Expr", "col", "lit", "parse"]

_BINARY = {
    "+": "add", "-": "subtract", "*": "multiply", "/": "divide", "**": "power", ">": "greater", ">=": "greater_equal", "<": "less", "<=": "less_equal",
    "==": "equal", "!=": "not_equal", "&": "and_kleene", "|": "or_kleene",
}  # fmt: skip
_UNARY = ("abs", "ceil", "floor", "round", "sign", "exp", "ln", "log10", "log2", "sin", "cos", "tan", "trunc", "negate")


class Expr:
    """A value for each row, made of columns. Built with `col` and `lit`; operators give new expressions. Immutable."""

    # What `==` gives is an expression, so expressions are compared by `structurally_equals`.
    __hash__ = None  # type: ignore[assignment]

    # -- operators
    def __add__(self, other: Any) -> Expr:
        return Binary("+", self, as_expr(other))

    def __radd__(self, other: Any) -> Expr:
        return Binary("+", as_expr(other), self)

    def __sub__(self, other: Any) -> Expr:
        return Binary("-", self, as_expr(other))

    def __rsub__(self, other: Any) -> Expr:
        return Binary("-", as_expr(other), self)

    def __mul__(self, other: Any) -> Expr:
        return Binary("*", self, as_expr(other))

    def __rmul__(self, other: Any) -> Expr:
        return Binary("*", as_expr(other), self)

    def __truediv__(self, other: Any) -> Expr:
        return Binary("/", self, as_expr(other))

    def __rtruediv__(self, other: Any) -> Expr:
        return Binary("/", as_expr(other), self)

    def __floordiv__(self, other: Any) -> Expr:
        return Call("floor", (Binary("/", self, as_expr(other)),))

    def __pow__(self, other: Any) -> Expr:
        return Binary("**", self, as_expr(other))

    def __mod__(self, other: Any) -> Expr:
        other = as_expr(other)
        return self - other * (self // other)

    def __gt__(self, other: Any) -> Expr:
        return Binary(">", self, as_expr(other))

    def __ge__(self, other: Any) -> Expr:
        return Binary(">=", self, as_expr(other))

    def __lt__(self, other: Any) -> Expr:
        return Binary("<", self, as_expr(other))

    def __le__(self, other: Any) -> Expr:
        return Binary("<=", self, as_expr(other))

    def __eq__(self, other: Any) -> Expr:  # type: ignore[override]
        return Binary("==", self, as_expr(other))

    def __ne__(self, other: Any) -> Expr:  # type: ignore[override]
        return Binary("!=", self, as_expr(other))

    def __and__(self, other: Any) -> Expr:
        return Binary("&", self, as_expr(other))

    def __rand__(self, other: Any) -> Expr:
        return Binary("&", as_expr(other), self)

    def __or__(self, other: Any) -> Expr:
        return Binary("|", self, as_expr(other))

    def __ror__(self, other: Any) -> Expr:
        return Binary("|", as_expr(other), self)

    def __invert__(self) -> Expr:
        return Call("invert", (self,))

    def __neg__(self) -> Expr:
        return Call("negate", (self,))

    def __bool__(self) -> bool:
        raise TypeError(f"the expression {self!r} has no truth value of its own; combine expressions with &, | and ~ instead of and, or and not")

    # -- methods
    def is_null(self) -> Expr:
        return Call("is_null", (self,))

    def is_not_null(self) -> Expr:
        return Call("is_valid", (self,))

    def is_in(self, values: Collection[Any] | Expr) -> Expr:
        if isinstance(values, Literal):
            values = values.value
        if isinstance(values, (Expr, str)) or not isinstance(values, Collection):
            raise TypeError(f"is_in() takes a list of values, and got {values!r}")
        return IsIn(self, list(values))

    def not_in(self, values: Collection[Any]) -> Expr:
        return ~self.is_in(values)

    def cast(self, target: pa.DataType | str) -> Expr:
        return Cast(self, target)

    def alias(self, name: str) -> Expr:
        return Alias(self, name)

    def power(self, exponent: Any) -> Expr:
        return self**exponent

    def abs(self) -> Expr:
        return Call("abs", (self,))

    def ceil(self) -> Expr:
        return Call("ceil", (self,))

    def floor(self) -> Expr:
        return Call("floor", (self,))

    def round(self) -> Expr:
        return Call("round", (self,))

    def sign(self) -> Expr:
        return Call("sign", (self,))

    def exp(self) -> Expr:
        return Call("exp", (self,))

    def ln(self) -> Expr:
        return Call("ln", (self,))

    def log10(self) -> Expr:
        return Call("log10", (self,))

    def log2(self) -> Expr:
        return Call("log2", (self,))

    def sin(self) -> Expr:
        return Call("sin", (self,))

    def cos(self) -> Expr:
        return Call("cos", (self,))

    def tan(self) -> Expr:
        return Call("tan", (self,))

    def trunc(self) -> Expr:
        return Call("trunc", (self,))

    def negate(self) -> Expr:
        return -self

    @property
    def name(self) -> str | None:
        """The column's name that this expression gives by itself."""
        return None

    def structurally_equals(self, other: Any) -> bool:
        return isinstance(other, Expr) and repr(self) == repr(other)

    # -- for the library
    def columns(self) -> set[str]:
        """The columns that it reads."""
        raise TypeError(f"{type(self).__name__} is no expression")

    def substitute(self, made: Mapping[str, Expr]) -> Expr:
        """The same with columns replaced by what they are made of."""
        raise TypeError(f"{type(self).__name__} is no expression")

    def evaluate(self, table: pa.Table) -> Any:
        """A ChunkedArray, or a scalar where no column is read."""
        raise TypeError(f"{type(self).__name__} is no expression")

    def to_pyarrow(self) -> Any:
        """As pyarrow.compute.Expression, for readers."""
        raise TypeError(f"{type(self).__name__} is no expression")


@dataclass(frozen=True, eq=False, repr=False)
class Column(Expr):
    column: str

    @property
    def name(self) -> str:
        return self.column

    def columns(self) -> set[str]:
        return {self.column}

    def substitute(self, made: Mapping[str, Expr]) -> Expr:
        return made.get(self.column, self)

    def evaluate(self, table: pa.Table) -> Any:
        check_columns([self.column], table.column_names, f"expression {self!r}")
        return table.column(self.column)

    def to_pyarrow(self) -> Any:
        import pyarrow.compute as pc

        return pc.field(self.column)

    def __repr__(self) -> str:
        return f"col({self.column!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Literal(Expr):
    value: Any

    def columns(self) -> set[str]:
        return set()

    def substitute(self, made: Mapping[str, Expr]) -> Expr:
        return self

    def evaluate(self, table: pa.Table) -> Any:
        import pyarrow as pa

        return pa.scalar(self.value)

    def to_pyarrow(self) -> Any:
        import pyarrow.compute as pc

        return pc.scalar(self.value)

    def __repr__(self) -> str:
        return f"lit({self.value!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Binary(Expr):
    operator: str
    left: Expr
    right: Expr

    def columns(self) -> set[str]:
        return self.left.columns() | self.right.columns()

    def substitute(self, made: Mapping[str, Expr]) -> Expr:
        return Binary(self.operator, self.left.substitute(made), self.right.substitute(made))

    def evaluate(self, table: pa.Table) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        left, right = self.left.evaluate(table), self.right.evaluate(table)
        if self.operator == "/" and pa.types.is_integer(left.type) and pa.types.is_integer(right.type):
            left = pc.cast(left, pa.float64())  # as in Python, and as in NumPy
        if self.operator == "+" and all(pa.types.is_string(side.type) or pa.types.is_large_string(side.type) for side in (left, right)):
            return pc.binary_join_element_wise(left, right, pa.scalar("", type=left.type))
        return getattr(pc, _BINARY[self.operator])(left, right)

    def to_pyarrow(self) -> Any:
        import pyarrow.compute as pc

        left, right = self.left.to_pyarrow(), self.right.to_pyarrow()
        if self.operator in "&|":
            return left & right if self.operator == "&" else left | right
        if self.operator == "/":
            left = left.cast("double")
        return pc.Expression._call(_BINARY[self.operator], [left, right])

    def __repr__(self) -> str:
        return f"({self.left!r} {self.operator} {self.right!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Call(Expr):
    function: str
    arguments: tuple[Expr, ...]

    def columns(self) -> set[str]:
        return set().union(*(argument.columns() for argument in self.arguments))

    def substitute(self, made: Mapping[str, Expr]) -> Expr:
        return Call(self.function, tuple(argument.substitute(made) for argument in self.arguments))

    def evaluate(self, table: pa.Table) -> Any:
        import pyarrow.compute as pc

        return getattr(pc, self.function)(*(argument.evaluate(table) for argument in self.arguments))

    def to_pyarrow(self) -> Any:
        import pyarrow.compute as pc

        return getattr(pc, self.function)(*(argument.to_pyarrow() for argument in self.arguments))

    def __repr__(self) -> str:
        return f"{self.function}({', '.join(map(repr, self.arguments))})"


@dataclass(frozen=True, eq=False, repr=False)
class IsIn(Expr):
    operand: Expr
    values: list[Any]

    def columns(self) -> set[str]:
        return self.operand.columns()

    def substitute(self, made: Mapping[str, Expr]) -> Expr:
        return IsIn(self.operand.substitute(made), self.values)

    def evaluate(self, table: pa.Table) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        operand = self.operand.evaluate(table)
        return pc.is_in(operand, value_set=pa.array(self.values, type=operand.type if not self.values else None).cast(operand.type))

    def to_pyarrow(self) -> Any:
        return self.operand.to_pyarrow().isin(self.values)

    def __repr__(self) -> str:
        return f"{self.operand!r}.is_in({self.values!r})"


@dataclass(frozen=True, eq=False, repr=False)
class Cast(Expr):
    operand: Expr
    target: Any

    def columns(self) -> set[str]:
        return self.operand.columns()

    def substitute(self, made: Mapping[str, Expr]) -> Expr:
        return Cast(self.operand.substitute(made), self.target)

    def evaluate(self, table: pa.Table) -> Any:
        import pyarrow.compute as pc

        return pc.cast(self.operand.evaluate(table), self.target)

    def to_pyarrow(self) -> Any:
        return self.operand.to_pyarrow().cast(self.target)

    @property
    def name(self) -> str | None:
        return self.operand.name

    def __repr__(self) -> str:
        return f"{self.operand!r}.cast({self.target!s})"


@dataclass(frozen=True, eq=False, repr=False)
class Alias(Expr):
    operand: Expr
    alias_name: str

    def columns(self) -> set[str]:
        return self.operand.columns()

    def substitute(self, made: Mapping[str, Expr]) -> Expr:
        return Alias(self.operand.substitute(made), self.alias_name)

    def evaluate(self, table: pa.Table) -> Any:
        return self.operand.evaluate(table)

    def to_pyarrow(self) -> Any:
        return self.operand.to_pyarrow()

    @property
    def name(self) -> str:
        return self.alias_name

    def __repr__(self) -> str:
        return f"{self.operand!r}.alias({self.alias_name!r})"


def col(name: str) -> Expr:
    """The column of that name."""
    if not isinstance(name, str):
        raise TypeError(f"col() takes a column's name, and got {name!r}")
    return Column(name)


def lit(value: Any) -> Expr:
    """The same value in every row."""
    return Literal(value)


def as_expr(value: Any) -> Expr:
    return value if isinstance(value, Expr) else Literal(value)


# -- text ----------------------------------------------------------------------------------------------------

_OPERATORS: dict[type, str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**", ast.Gt: ">", ast.GtE: ">=", ast.Lt: "<", ast.LtE: "<=", ast.Eq: "==",
    ast.NotEq: "!=", ast.BitAnd: "&", ast.BitOr: "|",
}  # fmt: skip


def parse(text: str) -> Expr:
    """An expression written as Python: names are columns.

    Raises:
        ValueError: for anything but names, constants, arithmetic, comparisons, `and`, `or`, `not`, `in`, `is None` and the functions of columns.

    Example::

        parse("age >= 18 and name in ['Ada', 'Alan']")
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"the expression {text!r} is no Python: {error.msg} at column {error.offset}") from error
    return _parse(tree, text)


def _parse(node: ast.AST, text: str) -> Expr:
    again: Callable[[ast.AST], Expr] = lambda child: _parse(child, text)  # noqa: E731
    match node:
        case ast.Name(id=name):
            return Column(name)
        case ast.Constant(value=constant):
            return Literal(constant)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return Binary(_OPERATORS[type(op)], again(left), again(right))
        case ast.BinOp(left=left, op=ast.Mod(), right=right):
            return again(left) % again(right)
        case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
            return again(left) // again(right)
        case ast.BoolOp(op=op, values=values):
            result = again(values[0])
            for value in values[1:]:
                result = result & again(value) if isinstance(op, ast.And) else result | again(value)
            return result
        case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
            return ~again(operand)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return Literal(-number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -again(operand)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            return _parse_comparison(left, ops, comparators, text)
        case ast.Call(func=ast.Name(id="col"), args=[ast.Constant(value=str(name))], keywords=[]):
            return Column(name)
        case ast.Call(func=ast.Attribute(value=operand, attr=name), args=args, keywords=[]) if name in (*_UNARY, "is_null", "is_not_null") and not args:
            return getattr(again(operand), name)()
    raise ValueError(
        f"the expression {text!r} has {ast.unparse(node)!r}, which is unknown: use columns, constants, arithmetic, comparisons, and, or, not, in, is None"
    )


def _parse_comparison(left: ast.AST, ops: list[ast.cmpop], comparators: list[ast.expr], text: str) -> Expr:
    parts: list[Expr] = []
    for op, right in zip(ops, comparators, strict=True):
        operand = _parse(left, text)
        if isinstance(op, (ast.In, ast.NotIn)):
            found = operand.is_in(list(ast.literal_eval(right)))
            parts.append(found if isinstance(op, ast.In) else ~found)
        elif isinstance(op, (ast.Is, ast.IsNot)) and isinstance(right, ast.Constant) and right.value is None:
            parts.append(operand.is_null() if isinstance(op, ast.Is) else operand.is_not_null())
        elif type(op) in _OPERATORS:
            parts.append(Binary(_OPERATORS[type(op)], operand, _parse(right, text)))
        else:
            raise ValueError(f"the expression {text!r} has a comparison that is not understood: {ast.unparse(op)}")
        left = right
    result = parts[0]
    for part in parts[1:]:
        result = result & part
    return result
