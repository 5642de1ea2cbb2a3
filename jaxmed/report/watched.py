"""What was seen of training while it went on, and which state was chosen."""

import re

from jaxmed.report import words
from jaxmed.report.images import Pictures
from jaxmed.report.load import Run

SHEETS, SIDE = 8, 400  # So many sheets of samples are shown; px.
RULES = {
  'fid': 'FID',
  'validation_loss': 'mean score of the validation normals',
}


def selection(run: Run) -> dict:
  """Which state of each phase was taken, by what rule, and among which."""
  found = run.provenance.get('select') or {}
  phases = found.get('phases') or []
  if not phases:
    return {}
  rule = RULES.get(found.get('rule'))
  rows = [
    {
      'phase': phase.get('phase'),
      'step': one.get('step'),
      'value': one.get('value'),
      'chosen': one.get('step') == phase.get('step'),
    }
    for phase in phases
    for one in phase.get('among') or []
  ]
  return {'rule': rule, 'sentence': _sentence(rule, phases), 'rows': rows}


def _sentence(rule: str | None, phases: list[dict]) -> str:
  if rule is None:
    last = phases[-1]
    return (
      f'Scored with the state after the last step, {words.count(last["step"])} '
      f'of phase “{last["phase"]}”; none was chosen (train.select=last).'
    )
  said = [_taken(rule, phase) for phase in phases]
  return (
    f'The state to score with was chosen by the lowest {rule}, without labels '
    f'and without the test: {"; ".join(said)}.'
  )


def _taken(rule: str, phase: dict) -> str:
  """'step 150 of 200 of phase “wgan” (FID 12.3, the lowest of 4)'"""
  among = phase.get('among') or []
  name = f'of phase “{phase["phase"]}”'
  if not among:
    return f'{name}, where there was nothing to choose by, the last step'
  said = 'FID' if rule == 'FID' else 'mean score'
  return (
    f'{name}, step {words.count(phase["step"])} of {words.count(phase["of"])} '
    f'({said} {words.number(phase["value"])}, the lowest of {len(among)})'
  )


def chosen(run: Run) -> dict[str, int]:
  """The step that was chosen of each phase, where there was a choice."""
  phases = (run.provenance.get('select') or {}).get('phases') or []
  return {one['phase']: one['step'] for one in phases if one.get('among')}


def fid_words(run: Run) -> str:
  """What the FID of this run is of."""
  found = run.provenance.get('watch') or {}
  if not found:
    return ''
  trained = f'those of {found.get("network")}'
  if found.get('weights') == 'random':
    trained = 'an untrained network’s, so compare within this data set alone'
  return (
    f'Of {words.count(found.get("images"))} generated and '
    f'{words.count(found.get("real"))} real images of cohort '
    f'“{found.get("cohort")}”; features: {trained}.'
  )


def sheets(run: Run, pictures: Pictures) -> list[dict]:
  """Generated images over time, each time from the same noise."""
  files = sorted((run.workdir / 'samples').glob('step-*.png'))
  rows = {row.get('event'): row for row in run.log}
  picked = chosen(run)
  found = []
  for file in files:
    if number := re.fullmatch(r'step-(\d+)\.png', file.name):
      row = rows.get(int(number[1]), {})
      name = f'Step {words.count(row.get("step", int(number[1])))}'
      fid = words.finite(row.get('fid'))
      found.append(
        {
          'file': f'samples/{file.name}',
          'name': name,
          'fid': '' if fid is None else f'FID {words.number(fid)}',
          'phase': row.get('phase', ''),
          'chosen': bool(row) and picked.get(row.get('phase')) == row['step'],
        }
      )
  shown = _spread(found)
  for sheet in shown:
    sheet |= pictures.embed(run.file(sheet['file']), SIDE)
  return shown


def _spread(found: list[dict]) -> list[dict]:
  """The first, the last, those that were chosen, and some between."""
  if len(found) <= SHEETS:
    return found
  even = {round(i * (len(found) - 1) / (SHEETS - 1)) for i in range(SHEETS)}
  return [x for i, x in enumerate(found) if i in even or x['chosen']]


def collapsed(run: Run) -> list[str]:
  """Adversaries whose loss has stayed at zero."""
  return [
    f'The loss of {one.get("part")} had been at zero (below '
    f'{words.number(one.get("below"))}) for {one.get("rounds")} logged steps '
    f'in a row by step {words.count(one.get("step"))} of phase '
    f'“{one.get("phase")}”: it told generated images from real ones without '
    'fail, and the generator learned nothing from it.'
    for one in run.provenance.get('collapse') or []
  ]
