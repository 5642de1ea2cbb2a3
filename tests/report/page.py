"""Reads a page as a strict reader would: every element closed in order."""

import html.parser

VOID = {'meta', 'img', 'input', 'br', 'link', 'hr'}
HIDDEN = {'style', 'script'}


class Page(html.parser.HTMLParser):
  """A page's elements, its visible text, and its ids."""

  def __init__(self, source: str):
    super().__init__(convert_charrefs=True)
    self.elements = []  # (tag, attributes)
    self.faults = []
    self._open, self._text = [], []
    self.feed(source)
    self.close()
    self.faults += [f'<{tag}> is never closed' for tag in self._open]

  def handle_starttag(self, tag, attrs):
    names = [name for name, _ in attrs]
    if len(names) != len(set(names)):
      self.faults.append(f'<{tag}> names an attribute twice: {names}')
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    if not self._open or self._open.pop() != tag:
      self.faults.append(f'</{tag}> at {self.getpos()} closes nothing')

  def handle_data(self, data):
    if not HIDDEN & set(self._open):
      self._text.append(data)

  @property
  def text(self) -> str:
    return ' '.join(' '.join(self._text).split())

  def all(self, tag: str) -> list[dict]:
    return [attributes for name, attributes in self.elements if name == tag]
