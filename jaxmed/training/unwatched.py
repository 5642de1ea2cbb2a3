"""What may be done beside training: to look at it, and to choose a state.

Training asks these four questions and knows nothing of the answers; those of
`Unwatched` change nothing. See jaxmed.watching.watch for one that looks.
"""

from jaxmed.method import Scalars, State
from jaxmed.training.loop import At


class Unwatched:
  """Nobody looks, and every phase ends with its last state."""

  def due(self, at: At) -> bool:
    """Whether to look after this step; the same on all hosts."""
    del at
    return False

  def look(self, at: At, state: State) -> Scalars:
    """What is seen of a state; it goes into the log beside its step's own.

    The state is good until this returns.
    """
    del at, state
    return {}

  def settle(self, phase: int, during: State, state: State) -> State:
    """The state that a phase ends with, given its last and its plan."""
    del phase, during
    return state

  def logged(self, phase: str, at: At, scalars: Scalars) -> None:
    """Told of every line of the log, on the host that writes it."""
