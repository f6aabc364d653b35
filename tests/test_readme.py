"The numbers in README are those of the committed table, not somebody's memory of it"
import io
import subprocess

import pandas as pd
import pytest
from conftest import ROOT
from gdpt.report import committed_rows, markdown, over_images, over_metrics, verdict_table
from gdpt.tiers import get_tier

TUNED = ['d2o', 'd2o_f', 'from_random', 'random_frozen']


def committed(name):
    "A file as last committed: a reproduction rewrites the tables in the working tree"
    git = subprocess.run(['git', 'show', f'HEAD:{name}'], cwd=ROOT, capture_output=True, text=True)
    if git.returncode: pytest.skip('no git checkout')
    return git.stdout


def test_tables():
    readme, rows = committed('README.md'), committed_rows(get_tier('tiny'))
    rows = rows[rows.study.isin(['d2o', 'pretrain'])]
    for table in (over_images(rows, 'fd', TUNED), over_metrics(rows, ['teacher', 'untuned', *TUNED, 'bootstrap', 'half'])):
        assert markdown(table) in readme, f'README should have:\n{markdown(table)}'


def test_headline():
    "The claims that README draws from the table, as means over seeds"
    committed('README.md')
    rows = committed_rows(get_tier('tiny'))
    fd = rows[(rows.study == 'd2o') & (rows.metric == 'fd')]
    mean = fd.groupby(['arm', 'nimg']).value.mean()
    end = {a:mean[a].iloc[-1] for a in ('teacher', 'untuned', *TUNED)}
    assert end['teacher'] <= 3 and end['untuned'] > 500 and end['d2o'] <= 8 and end['d2o_f'] <= 8 and end['random_frozen'] > 100
    for n in (5_000, 10_000, 25_000, 50_000): assert mean['from_random'][n] > max(mean['d2o'][n], mean['d2o_f'][n])
    assert set(fd[fd.arm.isin(TUNED[:3])].groupby('arm').seed.nunique()) == {3}


def test_verdicts():
    "README shows each claim with its verdict, effect, interval and floor as `verdicts.csv` has them"
    readme, table = committed('README.md'), verdict_table(pd.read_csv(io.StringIO(committed('data/tiny/verdicts.csv'))))
    assert list(table.index) == ['C1', 'C2', 'C3', 'C4', 'C5', 'C6', 'C7', 'C9']
    table['statement'] = table.statement.str.split(': ').str[0]
    assert markdown(table) in readme, f'README should have:\n{markdown(table)}'
