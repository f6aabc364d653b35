"Every study runs in smoke mode, headlessly, in the order in which they need each other, in a tree of its own"
import csv
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import ROOT

FIRST = ['pretrain', 'd2o', 'tune']  # run studies, in the order of their inputs; the reports read what these leave, and `verdicts` what reports decide
STUDIES = sorted((ROOT/'nbs'/'studies').glob('*.ipynb'), key=lambda p: (FIRST.index(p.stem) if p.stem in FIRST else len(FIRST) + (p.stem == 'verdicts'), p.stem))
COLUMNS = ['study', 'arm', 'seed', 'nimg', 'nfe', 'metric', 'value', 'floor', 'run', 'evaluations', 'seconds']
LESS = {'bench':dict(works=['d2o'], batch_sizes=[16], steps=[3], precisions=['bf16'], compiled=False, seconds=.1)}
CLAIMS = ['C1', 'C2', 'C3', 'C4', 'C5', 'C6', 'C7', 'C9']


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


def calls(name):
    "Parameters of the executions of a study: one, but for the arms that `tune` tunes with a second seed, which are those of `make reproduce`"
    from gdpt.studies import ONE_SEED, OWNER
    if name != 'tune': return [LESS.get(name, {})]
    return [dict(seeds=[0]), dict(seeds=[1], arms=[a for a, owner in OWNER.items() if owner != 'd2o' and a not in ONE_SEED])]


def run_smoke(tree, name, **params):
    from gdpt.studies import run_study
    return run_study(tree/'nbs'/'studies'/f'{name}.ipynb', tree/'executed'/f'{name}.ipynb', **params)


def test_there_are_studies():
    from gdpt.studies import REPORTS
    assert {p.stem for p in STUDIES} == {*FIRST, *REPORTS, 'verdicts', 'bench'}      # `make bench` runs that one, `make reproduce` does not


@pytest.mark.parametrize('name', [p.stem for p in STUDIES])
def test_smoke(tree, name):
    for params in calls(name): run_smoke(tree, name, tier='smoke', **params)
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
    assert {r['arm'] for r in rows if r['study'] == 'gan_vs_distillation'} >= {'pd', 'cd', 'ctm', 'rcd', 'pd_gan', 'cd_gan', 'ctm_gan', 'rcd_gan'}
    assert all(float(r['evaluations']) > 0 and float(r['seconds']) > 0 for r in rows if r['arm'] in ('d2o', 'pd', 'ctm_gan', 'lora'))
    with open(tree/'data'/'smoke'/'verdicts.csv', newline='') as f: verdicts = list(csv.DictReader(f))
    assert list(verdicts[0]) == ['claim', 'statement', 'effect', 'low', 'high', 'floor', 'verdict', 'tier', 'runs']
    assert [v['claim'] for v in verdicts] == CLAIMS and {v['verdict'] for v in verdicts} <= {'supported', 'refuted', 'undecided'}
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
