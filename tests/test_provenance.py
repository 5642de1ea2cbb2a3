"""Where a run's numbers come from, over several launches."""

import jax

from jaxmed import provenance, workdir


def test_who_only_reports_again_has_made_no_number(tmp_path, monkeypatch):
  made = provenance.Provenance(tmp_path)
  made.add(train={'steps': 3})
  made.stage('train', 2.0)
  before = workdir.read_json(tmp_path / 'provenance.json')
  assert len(before['devices']) == len(jax.devices()) and before['versions']
  monkeypatch.setattr(provenance, '__version__', '99.0')
  monkeypatch.setattr(jax, 'devices', lambda: jax.local_devices()[:1])
  provenance.Provenance(tmp_path).stage('report', 1.0)
  after = workdir.read_json(tmp_path / 'provenance.json')
  for name in ('jaxmed', 'commit', 'devices', 'versions', 'train'):
    assert after[name] == before[name]
  assert after['stages'] == {'train': 2.0, 'report': 1.0}
  provenance.Provenance(tmp_path).add(score={})
  after = workdir.read_json(tmp_path / 'provenance.json')
  assert after['jaxmed'] == '99.0' and len(after['devices']) == 1
