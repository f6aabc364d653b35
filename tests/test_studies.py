"Every study runs in smoke mode, headlessly, in the order in which they need each other, in a tree of its own"
import csv
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import ROOT

FIRST = ['pretrain', 'd2o']  # run studies, in the order of their inputs; the reports read what these leave
STUDIES = sorted((ROOT/'nbs'/'studies').glob('*.ipynb'), key=lambda p: (FIRST.index(p.stem) if p.stem in FIRST else len(FIRST), p.stem))
COLUMNS = ['study', 'arm', 'seed', 'nimg', 'nfe', 'metric', 'value', 'floor', 'run']


def results_of(root):
    "Tables and pictures under a root, each with the time it was written"
    return {p:p.stat().st_mtime_ns for d in ('data', 'figures') for p in (root/d).glob('*/*') if p.is_file() and p.parent.name not in ('cache', 'runs')}


@pytest.fixture(scope='module')
def tree():
    "A temporary project root, with nothing in it but the notebooks"
    with TemporaryDirectory() as tmp, pytest.MonkeyPatch.context() as patch:
        tree = Path(tmp)
        shutil.copy2(ROOT/'settings.ini', tree)
        shutil.copytree(ROOT/'nbs', tree/'nbs')
        patch.setenv('GDPT_ROOT', str(tree))
        patch.setenv('PYTHONPATH', str(ROOT))
        patch.delenv('SMOKE', raising=False)
        before = results_of(ROOT)
        yield tree
        assert results_of(ROOT) == before, 'a study wrote outside GDPT_ROOT'


def run_smoke(tree, name, **params):
    from gdpt.studies import run_study
    return run_study(tree/'nbs'/'studies'/f'{name}.ipynb', tree/'executed'/f'{name}.ipynb', **params)


def test_there_are_studies(): assert {'pretrain', 'd2o', 'data_efficiency', 'gallery'} <= {p.stem for p in STUDIES}


@pytest.mark.parametrize('name', [p.stem for p in STUDIES])
def test_smoke(tree, name):
    run_smoke(tree, name, tier='smoke')
    assert (tree/'executed'/f'{name}.ipynb').is_file()


def test_smoke_results(tree):
    "Runs after every study: the rows and pictures have their own folder, and the rows are complete"
    from gdpt.__main__ import main
    assert main(['results', '--tier', 'smoke']) == 0
    assert '| d2o |' in (tree/'data'/'smoke'/'RESULTS.md').read_text()
    with open(tree/'data'/'smoke'/'results.csv', newline='') as f: rows = list(csv.DictReader(f))
    assert list(rows[0]) == COLUMNS
    d2o = [r for r in rows if r['study'] == 'd2o']
    assert {r['arm'] for r in d2o} >= {'teacher', 'untuned', 'd2o', 'd2o_f', 'from_random', 'random_frozen'}
    assert {r['metric'] for r in d2o} == {'fd', 'fd_alt', 'fd_pix', 'kid', 'precision', 'recall', 'nearest'}
    pictures = {p.name for p in (tree/'figures'/'smoke').iterdir()}
    assert pictures and {Path(p).stem + e for p in pictures for e in ('.png', '.pdf')} == pictures
    assert not (tree/'data'/'tiny').exists() and not (tree/'figures'/'tiny').exists()


@pytest.mark.parametrize('params, why', [
    (dict(tier='smoke', sedes=[0]), r"undeclared parameters \['sedes'\]"),
    (dict(tier='huge'), "unknown tier 'huge'"),
])
@pytest.mark.parametrize('name', [p.stem for p in STUDIES])
def test_refusals(tree, name, params, why):
    with pytest.raises(ValueError, match=why) as refusal: run_smoke(tree, name, **params)
    assert len(str(refusal.value).splitlines()) == 1
