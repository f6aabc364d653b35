"The table of published figures that ours are held against"
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
