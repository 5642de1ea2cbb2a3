"""Hands the tasks of a preparation to Apache Beam, on whatever it runs.

The same tasks as a crew's, which write the same shards. Machines must share
the folder that is written and the one that is read, under the same paths.
Beam is not installed with this package but with its extra `beam`.
"""

from collections.abc import Sequence

from absl import logging

from jaxmed import errors
from jaxmed.datasets.crew import Task


def run_all(
  tasks: Sequence[Task], name: str, units: str, flags: Sequence[str]
) -> None:
  """Does every task that is not done yet; see `crew.run_all`.

  `flags` are of the pipeline: --runner=DirectRunner, --project and so on.
  """
  del units
  left = [task for task in tasks if not task.done]
  if not left:
    return
  try:
    import apache_beam
    from apache_beam.options import pipeline_options
  except ImportError as error:
    raise errors.UserError(
      'Apache Beam is not installed; get it with: pip install -e ".[beam]". '
      'Without --beam-runner the processes of this machine do the same work.'
    ) from error
  logging.info('%s: %d tasks to Beam (%s).', name, len(left), ' '.join(flags))
  options = pipeline_options.PipelineOptions(list(flags))
  with apache_beam.Pipeline(options=options) as pipeline:
    _ = (
      pipeline
      | 'tasks' >> apache_beam.Create(left)
      | 'spread' >> apache_beam.Reshuffle()
      | 'run' >> apache_beam.Map(run)
    )


def run(task):
  """One task on a worker. Beam would check types that it cannot."""
  task.run(lambda count: None)
  return task.name
