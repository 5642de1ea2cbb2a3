"""Reads the part of pickle that files of tensors need, and runs nothing.

A pickle is a program for a small machine with a stack. Python's own machine
imports and calls whatever the program names, which is how a file of weights
takes over a computer. This one builds lists, tuples, dicts, text and numbers;
a name it looks up in a table that its caller gives, and what a call of it
means is the caller's function to say. Every other name, and every other
operation, ends the reading. Neither names nor operations are ever resolved in
Python: there is no import here and no attribute is ever asked for.
"""

import dataclasses
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxmed.weights.source import Refused

PROTOCOLS = range(2, 6)
MOST_BYTES = 1 << 28
# An operation of one byte may make a dict of 64; large checkpoints have some
# hundred thousand.
MOST_OPERATIONS = 1 << 21
MOST_ARGUMENTS = 64
MOST_INTEGER = 16  # Bytes.
MOST_LINE = 512  # Bytes of a module's or a class's name.
# Keys that are whole numbers are spread by their value, which somebody could
# choose so that they all fall together.
MOST_KEY = 1 << 60
# Of a key or a name. Long ones, stored once, could be compared forever.
MOST_TEXT = 1024
ASKED = 'do not load the file with anything else, and ask for a state_dict'


@dataclasses.dataclass(frozen=True, eq=False)
class Symbol:
  """What stands for a name. `call` says what calling it gives, if it can be."""

  name: str
  call: Callable[..., Any] | None = None
  value: Any = None


class Inert:
  """Stands for things that are no tensors, such as a date or a set."""


INERT = Inert()
Persistent = Callable[[tuple], Any]


def load(
  content: np.ndarray,
  start: int,
  symbols: Mapping[str, Symbol],
  persistent: Persistent | None = None,
) -> tuple[Any, int]:
  """What one pickle holds, and where the file goes on after it."""
  machine = _Machine(content, start, symbols, persistent)
  return machine.run(), machine.place


class _Machine:
  """The stack, the memo, and a place in the file."""

  def __init__(self, content, start, symbols, persistent):
    # Its items are had far quicker than an array's.
    self.content = memoryview(content[: start + MOST_BYTES])
    self.place = start
    self.symbols, self.persistent = symbols, persistent
    self.stack: list[Any] = []
    self.marks: list[int] = []
    self.memo: dict[int, Any] = {}
    self.given = 0  # Things given to calls.

  def run(self) -> Any:
    for _ in range(MOST_OPERATIONS):
      code = self.read(1)
      operation = OPERATIONS.get(code)
      if operation is not None:
        operation(self)
      elif code == b'.':
        if len(self.stack) != 1 or self.marks:
          raise Refused('its pickle ends with more or less than one object')
        return self.stack[0]
      else:
        self.refuse(code)
    raise Refused(f'its pickle has more than {MOST_OPERATIONS} operations')

  def refuse(self, code: bytes) -> None:
    known = pickletools.code2op.get(code.decode('latin-1'))
    if known is None:
      raise Refused('its pickle is broken: fetch it again')
    name = known.name
    if name == 'INST':  # Names a class in the operation itself.
      name += f' (of {self.line()!r}.{self.line()!r})'
    elif name.startswith('EXT'):
      number = int.from_bytes(self.read(int(name[3:])), 'little')
      name += f' (of the registered class {number})'
    elif name in ('OBJ', 'NEWOBJ_EX') and self.stack:
      named = [x.name for x in self.stack if isinstance(x, Symbol)]
      name += f' (of {named[-1]})' if named else ''
    raise Refused(
      f"its pickle asks for the operation {name}, which tensors don't need; "
      + ASKED
    )

  def read(self, count: int) -> bytes:
    start, self.place = self.place, self.place + count
    if count < 0 or self.place > len(self.content):
      raise Refused('its pickle was cut off or is broken: fetch it again')
    return self.content[start : self.place].tobytes()

  def number(self, form: str) -> Any:
    return struct.unpack(form, self.read(struct.calcsize(form)))[0]

  def line(self) -> str:
    start = self.place
    raw = self.content[start : start + MOST_LINE].tobytes()
    length = raw.find(b'\n')
    if length < 0:
      raise Refused('its pickle names something without end')
    self.place += length + 1
    return text(raw[:length])

  def pop(self) -> Any:
    if len(self.stack) <= (self.marks[-1] if self.marks else 0):
      raise Refused('its pickle takes more than it made')
    return self.stack.pop()

  def top(self, kind: type) -> Any:
    value = self.pop()
    self.stack.append(value)
    if type(value) is not kind:
      raise Refused(f'its pickle fills a {type(value).__name__} as if it could')
    return value

  def since_mark(self) -> list[Any]:
    if not self.marks:
      raise Refused('its pickle ends a list that never began')
    mark = self.marks.pop()
    items = self.stack[mark:]
    del self.stack[mark:]
    return items

  def remember(self, key: int) -> None:
    value = self.pop()
    self.stack.append(value)
    self.memo[key] = value

  def recall(self, key: int) -> None:
    if key not in self.memo:
      raise Refused('its pickle recalls what it never stored')
    self.stack.append(self.memo[key])

  def fill(self, items: list[Any]) -> None:
    """Puts keys and values, in turns, into the dict below them."""
    target = self.pop()
    self.stack.append(target)
    if target is INERT:
      return
    target = self.top(dict)
    if len(items) % 2:
      raise Refused('its pickle gives a key without a value')
    for key, value in zip(items[::2], items[1::2], strict=True):
      target[checked_key(key)] = value

  def append(self, items: list[Any]) -> None:
    self.top(list).extend(items)

  def find(self, module: Any, name: Any) -> None:
    # First of all: tuples of tuples would take for ever to be written out.
    if type(module) is not str or type(name) is not str:
      raise Refused('its pickle asks for a name that is no text')
    known = f'{module}.{name}'
    if known not in self.symbols:
      raise Refused(
        f"its pickle asks for {known!r:.80}, which tensors don't need; {ASKED}"
      )
    self.stack.append(self.symbols[known])

  def call(self) -> None:
    arguments, symbol = self.pop(), self.pop()
    if type(arguments) is not tuple:
      raise Refused('its pickle calls something with no list of arguments')
    if type(symbol) is not Symbol or symbol.call is None:
      name = symbol.name if type(symbol) is Symbol else 'what is no function'
      raise Refused(f'its pickle calls {name}; {ASKED}')
    # A long list, stored once, could be given to any number of calls.
    self.given += len(arguments)
    if len(arguments) <= MOST_ARGUMENTS:
      self.given += sum(
        len(x) for x in arguments if type(x) in (list, tuple, dict)
      )
    if self.given > MOST_OPERATIONS or len(arguments) > MOST_ARGUMENTS:
      raise Refused(f'its pickle gives {symbol.name} far more than torch does')
    try:
      self.stack.append(symbol.call(*arguments))
    except TypeError:
      raise Refused(
        f'its pickle calls {symbol.name} with other arguments than torch does'
      ) from None

  def build(self) -> None:
    """Attributes of dicts and of what is no tensor: nothing needs them."""
    self.pop()
    target = self.pop()
    if target is not INERT and type(target) is not dict:
      raise Refused(
        f'its pickle gives attributes to a {type(target).__name__}; {ASKED}'
      )
    self.stack.append(target)

  def persist(self) -> None:
    saved = self.pop()
    if self.persistent is None:
      raise Refused('its pickle asks for storage outside of it')
    self.stack.append(self.persistent(saved))

  def integer(self, count: int) -> None:
    if not 0 <= count <= MOST_INTEGER:
      raise Refused(f'its pickle has a number of {count} bytes')
    self.stack.append(int.from_bytes(self.read(count), 'little', signed=True))

  def frame(self) -> None:
    length = self.number('<Q')
    if self.place + length > len(self.content):
      raise Refused('its pickle was cut off or is broken: fetch it again')

  def protocol(self) -> None:
    protocol = self.number('B')
    if protocol not in PROTOCOLS:
      raise Refused(
        f'its pickle is of protocol {protocol}; {PROTOCOLS[0]} to '
        f'{PROTOCOLS[-1]} are read: save it again with torch.save'
      )

  def tuple(self, count: int) -> None:
    items = [self.pop() for _ in range(count)]
    self.stack.append(tuple(reversed(items)))

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def ignore(self) -> None:
    """Items of a set."""
    self.since_mark()
    if self.pop() is not INERT:
      raise Refused('its pickle adds items to what is no set')
    self.stack.append(INERT)


def text(raw: bytes) -> str:
  try:
    return raw.decode()
  except UnicodeDecodeError:
    raise Refused('its pickle has text that is none') from None


def _old_text(raw: bytes) -> str | bytes:
  """Python 2 did not tell text from bytes."""
  try:
    return raw.decode()
  except UnicodeDecodeError:
    return raw


def checked_key(key: Any) -> Any:
  # Others would be hashed, and a tuple in tuples in tuples ends the process.
  if type(key) not in (str, int, bool, type(None)):
    raise Refused(f'its pickle has a key that is a {type(key).__name__}')
  if type(key) is int and abs(key) > MOST_KEY:
    raise Refused('its pickle has a key that is too large')
  if type(key) is str and len(key) > MOST_TEXT:
    raise Refused(f'its pickle has a key of {len(key)} letters')
  return key


OPERATIONS: dict[bytes, Callable[[_Machine], None]] = {
  b'\x80': _Machine.protocol,
  b'\x95': _Machine.frame,
  b'(': lambda m: m.marks.append(len(m.stack)),
  b'N': lambda m: m.push(None),
  b'\x88': lambda m: m.push(True),
  b'\x89': lambda m: m.push(False),
  b'J': lambda m: m.push(m.number('<i')),
  b'K': lambda m: m.push(m.number('B')),
  b'M': lambda m: m.push(m.number('<H')),
  b'G': lambda m: m.push(m.number('>d')),
  b'\x8a': lambda m: m.integer(m.number('B')),
  b'\x8b': lambda m: m.integer(m.number('<i')),
  b'X': lambda m: m.push(text(m.read(m.number('<I')))),
  b'\x8c': lambda m: m.push(text(m.read(m.number('B')))),
  b'\x8d': lambda m: m.push(text(m.read(m.number('<Q')))),
  b'T': lambda m: m.push(_old_text(m.read(m.number('<i')))),
  b'U': lambda m: m.push(_old_text(m.read(m.number('B')))),
  b'B': lambda m: m.push(m.read(m.number('<I'))),
  b'C': lambda m: m.push(m.read(m.number('B'))),
  b'\x8e': lambda m: m.push(m.read(m.number('<Q'))),
  b'\x96': lambda m: m.push(m.read(m.number('<Q'))),
  b']': lambda m: m.push([]),
  b'}': lambda m: m.push({}),
  b')': lambda m: m.push(()),
  b'\x8f': lambda m: m.push(INERT),
  b'a': lambda m: m.append([m.pop()]),
  b'e': lambda m: m.append(m.since_mark()),
  b's': lambda m: m.fill([m.pop(), m.pop()][::-1]),
  b'u': lambda m: m.fill(m.since_mark()),
  b'\x90': _Machine.ignore,
  b'\x91': lambda m: m.push((m.since_mark(), INERT)[1]),
  b't': lambda m: m.push(tuple(m.since_mark())),
  b'\x85': lambda m: m.tuple(1),
  b'\x86': lambda m: m.tuple(2),
  b'\x87': lambda m: m.tuple(3),
  b'q': lambda m: m.remember(m.number('B')),
  b'r': lambda m: m.remember(m.number('<I')),
  b'\x94': lambda m: m.remember(len(m.memo)),
  b'h': lambda m: m.recall(m.number('B')),
  b'j': lambda m: m.recall(m.number('<I')),
  b'c': lambda m: m.find(m.line(), m.line()),
  b'\x93': lambda m: m.find(*[m.pop(), m.pop()][::-1]),
  b'R': _Machine.call,
  b'\x81': _Machine.call,
  b'b': _Machine.build,
  b'Q': _Machine.persist,
}
