"""Selections: `label == 0 and tissue >= 0.9` on a table of examples.

A query reads like Python, and is never run as Python: its syntax tree is
walked, and whatever is not a comparison of columns is refused.
"""

import ast
import operator
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from jaxmed import errors

_ORDERS = {
  ast.Eq: operator.eq,
  ast.NotEq: operator.ne,
  ast.Lt: operator.lt,
  ast.LtE: operator.le,
  ast.Gt: operator.gt,
  ast.GtE: operator.ge,
}
_EXAMPLE = "label == 0 and tissue >= 0.9 and split in ('train', 'validation')"


def select(query: str, table: pa.Table) -> Bool[np.ndarray, ' n']:
  """Which rows of the table the query picks; the empty query picks all."""
  if not query.strip():
    return np.ones(len(table), bool)
  try:
    tree = ast.parse(query.strip(), mode='eval').body
  except (SyntaxError, ValueError) as error:
    raise _refuse(query, getattr(error, 'msg', str(error))) from error
  except (RecursionError, MemoryError) as error:
    raise _refuse(query[:60], 'it is nested too deeply') from error
  return _Query(query, table).truth(tree)


def _refuse(query: str, why: str) -> errors.UserError:
  return errors.UserError(
    f'The query {query!r} cannot be read: {why}. A query compares columns, '
    f'like {_EXAMPLE!r}.'
  )


class _Query:
  """One query's walk over its syntax tree."""

  def __init__(self, text: str, table: pa.Table):
    self._text, self._table = text, table

  def truth(self, node: ast.AST) -> np.ndarray:
    match node:
      case ast.BoolOp(op, values):
        join = np.logical_and if isinstance(op, ast.And) else np.logical_or
        return join.reduce([self.truth(value) for value in values])
      case ast.UnaryOp(ast.Not(), operand):
        return ~self.truth(operand)
      case ast.Compare(left, ops, comparators):
        sides = [left, *comparators]
        pairs = zip(sides, ops, sides[1:], strict=False)
        return np.logical_and.reduce([self._compare(*pair) for pair in pairs])
      case ast.Constant(bool() as value):
        return np.full(len(self._table), value)
    raise _refuse(self._text, f'{ast.unparse(node)!r} is no comparison')

  def _compare(self, left: ast.AST, op: ast.AST, right: ast.AST) -> np.ndarray:
    if isinstance(op, ast.In):
      return self._within(left, right)
    if isinstance(op, ast.NotIn):
      return ~self._within(left, right)
    if type(op) not in _ORDERS:
      raise _refuse(self._text, "'is' is no comparison here, write '=='")
    return self._both(_ORDERS[type(op)], self._value(left), self._value(right))

  def _within(self, left: ast.AST, right: ast.AST) -> np.ndarray:
    """A value in a list of values, or a text within a column's texts."""
    value = self._value(left)
    if isinstance(right, ast.Tuple | ast.List | ast.Set):
      equal = [
        self._both(operator.eq, value, self._value(item)) for item in right.elts
      ]
      nothing = np.zeros(len(self._table), bool)
      return np.logical_or.reduce([nothing, *equal])
    texts = self._value(right)
    if (
      isinstance(value, str) and _is_text(texts) and not isinstance(texts, str)
    ):
      return np.array([value in text for text in texts], bool)
    raise _refuse(
      self._text,
      f'{ast.unparse(right)!r} after `in` is neither a list nor a '
      'column of texts',
    )

  def _both(self, order: Callable, left, right) -> np.ndarray:
    if _is_text(left) != _is_text(right):
      text, number = (left, right) if _is_text(left) else (right, left)
      raise _refuse(
        self._text,
        f'it compares the text {_show(text)} with the number {_show(number)}',
      )
    return np.broadcast_to(order(left, right), len(self._table)).astype(bool)

  def _value(self, node: ast.AST):
    match node:
      case ast.Name(name):
        return self._column(name)
      case ast.Constant(int() | float() | str() as value):
        return value
      case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
        return -value
    raise _refuse(
      self._text,
      f'{ast.unparse(node)!r} is neither a column, a number nor a '
      'text in quotes',
    )

  def _column(self, name: str) -> np.ndarray:
    if name not in self._table.column_names:
      raise errors.unknown(
        f'column for the query {self._text!r}:', name, self._table.column_names
      )
    return self._table[name].to_numpy()


def _is_text(value) -> bool:
  return isinstance(value, str) or getattr(value, 'dtype', None) == np.dtype(
    object
  )


def _show(value) -> str:
  return 'column' if isinstance(value, np.ndarray) else repr(value)
