"""The notebooks: short, without outputs, and they run in any folder."""

import csv
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_has_no_outputs(path):
    cells = json.loads(path.read_text())['cells']
    assert 1 < len(cells) <= 12
    assert [cell['id'] for cell in cells if cell.get('outputs') or cell.get('execution_count')] == []


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip('nbclient', reason='nbclient is not installed (the extra dev)')
    nbformat = pytest.importorskip('nbformat')
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    notebook = nbformat.read(path, as_version=4)
    nbclient.execute(notebook, cwd=tmp_path, timeout=600, kernel_name='python3')
    shown = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    assert sum('image/png' in output.get('data', ()) for output in shown) >= 2
    if path.stem == 'own_data':
        (summary,) = tmp_path.glob('timm-dad-*/student/summary.csv')
        *_, last = csv.DictReader(summary.read_text().splitlines())
        assert float(last['eval_top1']) > 20  # of 16 classes
