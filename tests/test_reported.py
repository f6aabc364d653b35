"The table of published figures that ours are held against"
import shutil

import pandas as pd
import pytest
from conftest import ROOT

COLUMNS = ['dataset', 'method', 'nfe', 'metric', 'value', 'images_m', 'source', 'mark']
DATASETS = ['cifar10', 'cifar10-cond', 'ffhq64', 'afhqv2-64', 'imagenet64']
METRICS = ['fid50k', 'clip_fid50k', 'inception_score', 'precision', 'recall', 'fd_dinov2']
README = 'D2O README'
# the primary targets, as the authors' README has them: data set -> method -> FID, CLIP-FID, training images in millions
PRIMARY = {
    'cifar10':    {'EDM':(1.98, .53, None), 'CD':(4.10, 1.26, 100), 'SiD':(1.92, .65, 400), 'D2O-F':(1.56, .66, 5)},
    'ffhq64':     {'EDM':(2.39, 1.18, None), 'SiD':(1.55, .80, 500), 'D2O-F':(.83, .81, 9)},
    'afhqv2-64':  {'EDM':(1.96, .40, None), 'SiD':(1.62, .32, 300), 'D2O-F':(1.24, .18, 7)},
    'imagenet64': {'EDM':(2.64, .82, None), 'CD':(6.87, 2.93, 1000), 'SiD':(1.52, .75, 930), 'D2O-F':(1.13, .51, 6)}}
EARLIER = {'cifar10':('GDD-I', 1.54), 'ffhq64':('GDD-I', .85), 'afhqv2-64':('GDD', 1.23), 'imagenet64':('GDD-I', 1.16)}  # the 2024 version's abstract


@pytest.fixture(scope='module')
def reported(): return pd.read_csv(ROOT/'data'/'reported.csv')


def test_schema(reported):
    assert list(reported.columns) == COLUMNS
    assert '#' not in (ROOT/'data'/'reported.csv').read_text(encoding='utf-8')
    assert not reported.drop(columns='images_m').isna().any().any()
    assert list(reported.dataset.unique()) == DATASETS and set(reported.metric) == set(METRICS)
    assert pd.api.types.is_integer_dtype(reported.nfe) and reported.nfe.min() >= 1
    assert (reported.value > 0).all() and (reported.images_m.dropna() > 0).all()
    assert (reported[reported.metric.isin(['precision', 'recall'])].value < 1).all()


def test_marks(reported):
    "Each figure says where it was read; what nobody has seen at a source is left out"
    assert set(reported.mark) == {'V', 'S', 'F'}
    assert '[U]' not in (ROOT/'data'/'reported.csv').read_text(encoding='utf-8')
    for column in ('dataset', 'method', 'metric', 'source'): assert (reported[column] == reported[column].str.strip()).all()


def test_no_row_twice(reported):
    assert not reported.duplicated(['dataset', 'method', 'nfe', 'metric', 'value', 'mark']).any()


def test_primary_targets(reported):
    readme = reported[(reported.mark == 'V') & reported.source.str.contains(README)]
    of = lambda d, m, metric: readme[(readme.dataset == d) & (readme.method == m) & (readme.metric == metric)]
    for d, methods in PRIMARY.items():
        for m, (fid, clip, images) in methods.items():
            (fid_row,), (clip_row,) = (list(of(d, m, k).itertuples()) for k in ('fid50k', 'clip_fid50k'))
            assert (fid_row.value, clip_row.value) == (fid, clip)
            assert fid_row.nfe == clip_row.nfe == ({'cifar10':35}.get(d, 79) if m == 'EDM' else 1)
            assert pd.isna(fid_row.images_m) if images is None else fid_row.images_m == images
    for d, (m, fid) in EARLIER.items():
        row = reported[(reported.dataset == d) & (reported.method == m) & (reported.metric == 'fid50k') & (reported.mark == 'V')]
        assert row.value.tolist() == [fid]


def test_disagreements_are_kept(reported):
    "Five papers, five values for one network: their spread is what a difference must exceed"
    edm = reported[(reported.dataset == 'cifar10') & (reported.method == 'EDM') & (reported.metric == 'fid50k')]
    assert sorted(edm.value) == [1.97, 1.98, 2.01, 2.04, 2.05]
    for d, m, values in (('cifar10', 'Diff-Instruct', {4.53, 5.57}), ('cifar10', 'sCT', {2.97, 2.85}), ('imagenet64', 'EDM', {2.64, 2.44, 2.35}), ('cifar10', 'StyleGAN-XL', {1.85, 1.52})):
        one = reported[(reported.dataset == d) & (reported.method == m) & (reported.metric == 'fid50k') & (reported.nfe == (79 if m == 'EDM' else 1))]
        assert set(one.value) == values


GOOD = {'fid50k':1.5, 'clip_fid50k':.6, 'fd_dinov2_50k':140., 'is50k':9.9, 'precision50k':.72, 'recall50k':.65, 'kid50k':1e-4}
ARMS = {'teacher':0, 'd2o':5_000_000, 'd2o_f':5_000_000, 'teacher_cond':0, 'd2o_cond':5_000_000, 'd2o_f_cond':5_000_000}


def compare(root, monkeypatch, tier, arms, **other):
    "The comparison of a project whose rows are made up, `other` values for some arms: its table, its verdicts on claims"
    from gdpt.claims import read_verdicts
    from gdpt.report import result_rows, save_rows
    from gdpt.studies import run_study
    from gdpt.tiers import get_tier
    monkeypatch.setenv('GDPT_ROOT', str(root))
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    tier = get_tier(tier)
    (root/'data').mkdir()
    shutil.copy2(ROOT/'data'/'reported.csv', root/'data')
    for arm, nimg in arms.items():
        for seed in range(3):
            rows = [r for n in ([nimg//2, nimg] if nimg else [0])
                    for r in result_rows('made-up', arm, seed, n, 1 if nimg else tier.pretrain.sample_steps*2-1,
                                         {k:v*(1+.003*seed)*(1 if n == nimg else 1.1) for k, v in {**GOOD, **other.get(arm, {})}.items()}, {'bootstrap':dict.fromkeys(GOOD, [0.])}, f'{arm}-{seed}')]
            save_rows(tier, rows)
    run_study(ROOT/'nbs'/'studies'/'state_of_the_art.ipynb', root/'executed.ipynb', tier=tier.name)
    return pd.read_csv(root/'data'/tier.name/'state_of_the_art.csv', keep_default_na=False, na_values=['']), read_verdicts(tier).set_index('claim')


def test_ours_beside_it(tmp_path, monkeypatch):
    "Every measure that both sides have, each with a tolerance; C8 from both data sets of CIFAR-10"
    table, verdicts = compare(tmp_path, monkeypatch, 'paper', ARMS, d2o_f=dict(clip_fid50k=.665), teacher=dict(is50k=9.6))
    assert set(table.metric) == set(GOOD) - {'kid50k'}                  # nobody reports that one
    assert set(zip(table.dataset, table.arm)) == {(f'cifar10{"-cond" if a.endswith("_cond") else ""}', a) for a in ARMS}
    both = table[table.reported.notna()]
    assert set(both.metric) == set(GOOD) - {'kid50k', 'precision50k'}   # precision is reported on ImageNet 64 alone
    assert (both.tolerance > 0).all() and set(both.met) == {'yes', 'no'} and table[table.reported.isna()].met.isna().all()
    of = both.set_index(['arm', 'metric'])
    assert of.loc[('teacher', 'is50k'), ['reported', 'met']].tolist() == [9.84, 'no']       # more is better there
    assert of.loc[('d2o_f', 'clip_fid50k'), ['reported', 'met']].tolist() == [.66, 'yes']   # worse, by less than the tolerance
    assert of.loc[('teacher', 'fd_dinov2_50k'), ['reported', 'met']].tolist() == [145.2, 'yes']
    assert of.loc[('teacher_cond', 'recall50k'), 'reported'] == .63
    c8 = verdicts.loc['C8']
    assert c8.verdict == 'supported' and 'cifar10 1.50, cifar10-cond 1.50' in c8.statement and 'in clip_fid50k supported' in c8.statement
    assert set(c8.runs.split()) == {f'{a}-{s}' for a in ('d2o_f', 'd2o_f_cond') for s in range(3)}
    assert {p.stem for p in (tmp_path/'figures'/'paper').glob('*.png')} == {'state_of_the_art', 'state_of_the_art_cifar10-cond'}
    assert '| cifar10-cond | d2o_f_cond | FID | 1 | 5M |' in (tmp_path/'data'/'runs'/'paper'/'notes'/'state_of_the_art.md').read_text()


def test_classes_decide_too(tmp_path, monkeypatch):
    "One data set is not enough where the tier has two: C8 waits for the conditional one"
    _, verdicts = compare(tmp_path, monkeypatch, 'paper', {'d2o_f':5_000_000})
    assert verdicts.loc['C8'].verdict == 'undecided' and 'cifar10 1.50, cifar10-cond not measured' in verdicts.loc['C8'].statement


def test_precision_where_it_is_reported(tmp_path, monkeypatch):
    table, verdicts = compare(tmp_path, monkeypatch, 'paper-imagenet64', {'teacher':0, 'd2o_f':10_000_000}, teacher=dict(precision50k=.69, recall50k=.665), d2o_f=dict(fid50k=1.1, clip_fid50k=.5))
    of = table.set_index(['arm', 'metric'])
    assert of.loc[('teacher', 'precision50k'), ['reported', 'met']].tolist() == [.71, 'no']
    assert of.loc[('teacher', 'recall50k'), ['reported', 'met']].tolist() == [.67, 'yes'] and verdicts.loc['C8'].verdict == 'supported'
