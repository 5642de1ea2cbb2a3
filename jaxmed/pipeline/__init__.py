"""From records on disk to batches on the devices."""

from jaxmed.pipeline.cohort import Cohort, open_cohort
from jaxmed.pipeline.frame import read_batch

__all__ = ['Cohort', 'open_cohort', 'read_batch']
