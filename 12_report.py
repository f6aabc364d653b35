# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # report
#
# > Rows of results: written by each run of a study, collected into one table per tier, summarised with their spread and their floors

# %%
#| default_exp report

# %%
#| export
import io, json, math, subprocess
from decimal import Decimal
from pathlib import Path
from gdpt.checkpoints import write_text
from gdpt.data import project_root
from gdpt.metrics import METRICS
from gdpt.tiers import Tier
from gdpt.training import fingerprint

# %%
#| hide
import os, tempfile
import pandas as pd
from fastcore.test import *
from gdpt.tiers import get_tier
from gdpt.training import record

# %% [markdown]
# ## A row
#
# A result is one number with everything needed to read it: which study and arm, which seed, after how many real images, at how many network
# evaluations, its floor, and the run that it came from.

# %%
#| export
COLUMNS = ['study','arm','seed','nimg','nfe','metric','value','floor','run','evaluations','seconds']

def floor_of(
    floors:dict,    # 'half' and 'bootstrap' -> metric -> values (`gdpt.metrics.floors`)
    metric:str,
)->float:           # what a copy of the data itself would score
    "The floor beside a value: as many real images as were judged, drawn with replacement; for `nearest`, each real image to its nearest other"
    values = floors['half' if metric == 'nearest' else 'bootstrap'][metric]
    return sum(values)/len(values)

def result_rows(
    study:str,
    arm:str,
    seed:int,
    nimg:int,       # real images seen in training
    nfe:int,        # network evaluations per sample
    values:dict,    # metric -> value
    floors:dict,    # as `floor_of` reads them
    run:str,        # name of the run folder
    cost:dict={},   # what training had cost: `evaluations` of the network, `seconds` (`gdpt.training.cost_at`); where nothing was trained, none
)->list:            # rows, one per metric
    "One row per metric"
    return [dict(zip(COLUMNS, (study, arm, seed, nimg, nfe, m, v, floor_of(floors, m), run, cost.get('evaluations'), cost.get('seconds')))) for m,v in values.items()]


# %%
floors = {'half':{'fd':[10.,11.],'nearest':[2.,2.]}, 'bootstrap':{'fd':[.9,1.1],'nearest':[0.,0.]}}
rows = result_rows('d2o', 'd2o_f', 0, 5_000, 1, {'fd':33., 'nearest':2.1}, floors, 'd2o_f-s0-1234')
for r in rows: print(r)
test_eq([r['floor'] for r in rows], [1., 2.])
test_eq(result_rows('d2o', 'd2o', 0, 5_000, 1, {'fd':33.}, floors, 'run', dict(evaluations=7., seconds=2.))[0]['evaluations'], 7.)


# %% [markdown]
# ## Where rows are kept
#
# Studies run side by side and must not share a file. So each writes the rows of one arm and seed to a file of its own, under `data/runs`,
# and one collector makes `data/<tier>/results.csv` of them.

# %%
#| export
def rows_folder(tier:Tier)->Path:
    "Rows that were made on this machine"
    return project_root()/'data'/'runs'/tier.name/'rows'

def save_rows(
    tier:Tier,
    rows:list,   # of one study, arm and seed
)->Path:         # file
    "Keep the rows of one arm and seed, in place of those it had"
    import pandas as pd
    df = pd.DataFrame(rows, columns=COLUMNS)
    (study,arm,seed), = df[['study','arm','seed']].drop_duplicates().itertuples(index=False)
    path = rows_folder(tier)/f'{study}--{arm}--{seed}.csv'
    write_text(path, df.to_csv(index=False))
    return path

def results_path(tier:Tier)->Path:
    "The table of a tier, which is tracked"
    return project_root()/'data'/tier.name/'results.csv'


# %% [markdown]
# What ran here replaces what was there, arm by arm. Arms that did not run here stay as they were committed, and the tables say which.

# %%
#| export
def read_rows(
    tier:Tier,
):               # DataFrame of `COLUMNS` and `here`: made on this machine?
    "All rows of a tier: those made here, and those of the table for arms that did not run here"
    import pandas as pd
    mine = [pd.read_csv(p) for p in sorted(rows_folder(tier).glob('*.csv'))]
    mine = pd.concat(mine) if mine else pd.DataFrame(columns=COLUMNS)
    kept = pd.read_csv(results_path(tier)).reindex(columns=COLUMNS) if results_path(tier).exists() else pd.DataFrame(columns=COLUMNS)
    arms = set(zip(mine.study, mine.arm))
    kept = kept[[a not in arms for a in zip(kept.study, kept.arm)]]
    parts = [df.assign(here=here) for df,here in ((mine,True),(kept,False)) if len(df)]
    if not parts: raise FileNotFoundError(f'no results of tier {tier.name!r} yet: run its studies first')
    return pd.concat(parts).sort_values(['study','arm','seed','nimg','nfe','metric'], ignore_index=True)

def collect(
    tier:Tier,
)->Path:         # `data/<tier>/results.csv`
    "Rewrite the table of a tier from the rows made here, all or nothing"
    write_text(results_path(tier), read_rows(tier)[COLUMNS].to_csv(index=False, float_format='%.6g'))
    return results_path(tier)


# %%
os.environ['GDPT_ROOT'] = tempfile.mkdtemp()
smoke = get_tier('smoke')
test_fail(lambda: read_rows(smoke), contains="no results of tier 'smoke' yet")
save_rows(smoke, rows)
save_rows(smoke, result_rows('d2o', 'd2o_f', 1, 5_000, 1, {'fd':35.}, floors, 'd2o_f-s1-1234'))
print(collect(smoke).read_text())

# %% [markdown]
# On another machine, where only another arm ran, the collected rows stay, and say that they are not from here.

# %%
for p in rows_folder(smoke).iterdir(): p.unlink()
save_rows(smoke, result_rows('d2o', 'd2o', 0, 5_000, 1, {'fd':40.}, floors, 'd2o-s0-1234'))
both = read_rows(smoke)
test_eq(dict(zip(both.arm, both.here)), {'d2o':True, 'd2o_f':False})
save_rows(smoke, result_rows('d2o', 'd2o', 0, 5_000, 1, {'fd':39.}, floors, 'd2o-s0-1234'))     # run again: replaced, not added
collect(smoke); collect(smoke)
test_eq(read_rows(smoke).query('arm == "d2o"').value.tolist(), [39.])


# %% [markdown]
# ## Summaries
#
# A mean without its spread says little. Tables print the mean over seeds, plus or minus the standard deviation over seeds where there is more than
# one (with `n - 1` below the root), and how many there were.

# %%
#| export
def digits3(x:float)->str:
    "A number to three significant digits, without an exponent"
    return format(Decimal(f'{x:.2e}'), 'f') if abs(x) < 1000 else f'{x:.0f}'

def mean_sd(
    values,      # one per seed
)->str:
    "Mean and standard deviation over seeds, as text"
    import numpy as np
    v = np.asarray(values, float)
    return digits3(v.mean()) + (f' ± {digits3(v.std(ddof=1))}' if len(v) > 1 else '')

def markdown(
    df,          # DataFrame of text
)->str:
    "A DataFrame as a Markdown table, its index as the first column; sentences to the left, numbers to the right"
    head = [df.index.name or '', *map(str, df.columns)]
    align = ['---', *('---' if df[c].astype(str).str.len().max() > 40 else '--:' for c in df.columns)]    # a table without rows has no text either
    lines = [head, align, *([str(i), *map(str, r)] for i,r in zip(df.index, df.values))]
    return '\n'.join('| '+' | '.join(l)+' |' for l in lines)


# %%
test_eq([digits3(x) for x in (1.2345e-5, .5, 6, 999.9, 1112.3, -68.46)], ['0.0000123','0.500','6.00','1000','1112','-68.5'])
test_eq(mean_sd([6.0, 6.1, 6.2]), '6.10 ± 0.100')
test_eq(mean_sd([1112.]), '1112')
print(markdown(pd.DataFrame({'5k':['1','2']}, index=pd.Index(['D2O','D2O-F'], name='arm'))))
assert markdown(pd.DataFrame({'seeds':[]}, index=pd.Index([], name='arm'))).startswith('| arm | seeds |')    # where only pre-training has run


# %%
#| export
def metrics_of(
    rows,           # DataFrame of rows
)->list:            # names; the first one decides
    "The metrics of some rows: those of `gdpt.metrics` in its order, or of the public spaces as they were measured"
    seen = list(dict.fromkeys(rows.metric))
    return [m for m in METRICS if m in seen] or [m for m in seen if not m.endswith('_min')]


# %%
import pandas as pd
test_eq(metrics_of(pd.DataFrame(dict(metric=['recall','fd','fd']))), ['fd','recall'])
test_eq(metrics_of(pd.DataFrame(dict(metric=['fid50k','kid50k','fid50k_min']))), ['fid50k','kid50k'])


# %%
#| export
def over_images(
    rows,           # DataFrame of rows
    metric:str,
    arms,           # in this order
):                  # DataFrame of text: arm by images seen
    "One metric: arms down, images seen across; only counts that all arms have, where there are any"
    r = rows[(rows.metric == metric) & rows.arm.isin(arms)]
    t = r.groupby(['arm','nimg']).value.agg(mean_sd).unstack().reindex(arms)
    t = (t if t.dropna(axis=1).empty else t.dropna(axis=1)).fillna('')
    seeds = r.groupby('arm').seed.nunique()
    return t.rename(columns=lambda n: f'{n/1000:g}k').assign(seeds=[str(seeds[a]) for a in arms]).rename_axis('arm')

def over_metrics(
    rows,           # DataFrame of rows
    arms,           # in this order
):                  # DataFrame of text: arm by metric, each at its last snapshot
    "All metrics at the end of training: arms down, metrics across"
    r = rows[rows.arm.isin(arms)]
    r = r[r.nimg == r.groupby('arm').nimg.transform('max')]
    order = metrics_of(r)
    t = r.groupby(['arm','metric']).value.agg(mean_sd).unstack()[order].reindex(arms)
    first = lambda a: r[r.arm == a].iloc[0]
    return t.assign(images=[f'{first(a).nimg/1000:g}k' for a in arms], NFE=[str(first(a).nfe) for a in arms], seeds=[str(r[r.arm == a].seed.nunique()) for a in arms]).rename_axis('arm')


# %%
many = pd.DataFrame(sum((result_rows('d2o', a, s, n, 1, {'fd':v*10_000/n+s, 'recall':.9}, {k:{'fd':[1.],'recall':[1.]} for k in ('half','bootstrap')}, 'r')
                         for a,v in (('d2o',10),('d2o_f',8)) for s in (0,1,2) for n in (5_000,50_000)), []))
t = over_images(many, 'fd', ['d2o','d2o_f'])
print(markdown(t)); print(markdown(over_metrics(many, ['d2o'])))
test_eq(t.loc['d2o','5k'], '21.0 ± 1.00')
test_eq(t.loc['d2o_f','50k'], '2.60 ± 1.00')


# %% [markdown]
# Read the other way round, a curve says how many images a given quality takes.

# %%
#| export
def crossing(
    x,             # ascending and positive: images, or cost; (n,)
    y,             # positive, falling on the whole, (n,)
    goal:float,    # distance to be reached
)->float:          # the first point where the curve starts below `goal`; beyond the last where it ends above, not a number if it does not fall there
    "Where a curve first passes below `goal`, along straight lines in the logarithms of both axes"
    import numpy as np
    x,y = np.asarray(x, float),np.asarray(y, float)
    below = np.flatnonzero(y <= goal)
    if len(below) and below[0] == 0: return float(x[0])
    i = below[0] if len(below) else len(y)-1
    if i == 0 or y[i] >= y[i-1]: return math.nan
    return float(x[i-1]*(x[i]/x[i-1])**(math.log(y[i-1]/goal)/math.log(y[i-1]/y[i])))

def images_to_reach(
    curve,         # Series of means, falling, indexed by images seen
    goal:float,    # value to be reached
)->str:            # image count as text, or a bound
    "Images at which a curve first passes `goal` (`crossing`), for a table"
    if curve.min() > goal: return f'more than {curve.index[-1]:,.0f}'
    if curve.iloc[0] <= goal: return f'{curve.index[0]:,.0f} or less'
    return f'{crossing(curve.index, curve, goal):,.0f}'


# %%
power_law = pd.Series({n:1e6/n for n in (5_000,10_000,50_000)})
test_eq(images_to_reach(power_law, 50), '20,000')
test_eq(images_to_reach(power_law, 300), '5,000 or less')
test_eq(images_to_reach(power_law, 1), 'more than 50,000')
test_close([crossing(power_law.index, power_law, g) for g in (150, 30, 10)], [1e6/150, 1e6/30, 1e5])      # the last one beyond the end
test_eq(crossing(power_law.index, power_law, 500), 5_000)                                                 # there from the start
assert math.isnan(crossing([10,20], [3.,4.], 2.)) and math.isnan(crossing([10], [3.], 2.))


# %% [markdown]
# ## Against the committed table
#
# In a fresh clone, the table that came with it is what somebody else's machine made. After a reproduction the two are compared, arm by arm: the
# difference of the means beside the spread over seeds tells whether it is more than another machine's rounding sends a GAN's path to.

# %%
#| export
def committed_rows(tier:Tier):
    "The table as last committed, a DataFrame; None without git or without one"
    import pandas as pd
    name = results_path(tier).relative_to(project_root()).as_posix()
    try: git = subprocess.run(['git','show',f'HEAD:./{name}'], cwd=project_root(), capture_output=True, text=True)
    except FileNotFoundError: return None
    return pd.read_csv(io.StringIO(git.stdout)) if git.returncode == 0 else None

def differences(
    new,                   # DataFrame of rows
    old,                   # DataFrame of rows
    tolerance:float=1e-3,  # relative difference of means below which nothing is said
)->tuple:                  # how many means both have; lines of text, one for each that differs
    "Where the means of two tables differ, with the spread over seeds of both"
    stats = lambda df: df.groupby(['study','arm','nimg','nfe','metric']).value.agg(list)
    both = stats(new).to_frame('new').join(stats(old).rename('old'), how='inner')
    mean = lambda v: sum(v)/len(v)
    apart = both[[abs(mean(r.new)-mean(r.old)) > tolerance*abs(mean(r.old)) for r in both.itertuples()]]
    return len(both), [f'{study} {arm}, {nimg:,} images, NFE {nfe}: {metric} {mean_sd(r.new)} here, {mean_sd(r.old)} committed'
                       for (study,arm,nimg,nfe,metric),r in apart.iterrows()]


# %%
moved = many.assign(value=many.value + 2.*((many.arm == 'd2o') & (many.nimg == 50_000)))
compared,lines = differences(moved, many)
print(compared, *lines, sep='\n')
test_eq((compared, len(lines)), (8, 2))                     # fd and recall of that arm and count
test_eq(differences(many, many), (8, []))
test_eq(differences(many[:0], many), (0, []))               # nothing ran here: nothing was compared
assert committed_rows(smoke) is None                        # this folder is in no git checkout


# %% [markdown]
# ## Verdicts
#
# The table of verdicts stands on top of the page, for readers who read no further: each claim of the paper, what was measured, the verdict. In front
# of it, a paragraph that says in words which claims agree with the paper at this scale. (`gdpt.claims` says how a verdict is reached.)

# %%
#| export
def verdicts_path(tier:Tier)->Path:
    "The verdicts of a tier, which are tracked"
    return project_root()/'data'/tier.name/'verdicts.csv'

def verdict_table(
    verdicts,    # DataFrame, as in `verdicts.csv`
):               # DataFrame of text, by claim
    "Verdicts for readers: numbers rounded, runs counted"
    number = lambda x: '–' if x != x else f'{x:.2f}'
    interval = [number(l) if l != l else f'{l:.2f} to {h:.2f}' for l,h in zip(verdicts.low, verdicts.high)]
    runs = [str(len(str(r).split())) if r == r else '0' for r in verdicts.runs]
    t = verdicts.assign(effect=verdicts.effect.map(number), interval=interval, floor=verdicts.floor.map(number), runs=runs).set_index('claim')
    return t[['statement','verdict','effect','interval','floor','runs']].rename(columns={'interval':'95 % interval'})

def in_words(
    verdicts,    # DataFrame, as in `verdicts.csv`
)->str:          # a paragraph
    "Which claims agree with the paper at this scale, in plain words"
    claim = {v:[f'{s.split(": ")[0]} ({c})' for c,s in zip(verdicts.claim, verdicts.statement) if verdicts.verdict[verdicts.claim == c].item() == v]
             for v in ('supported','refuted','undecided')}
    say = lambda v,words: f'{words}: {"; ".join(claim[v])}.' if claim[v] else f'{words}: none.'
    return ' '.join([say('supported', 'At this scale, agrees with the paper'), say('refuted', 'Does not agree'),
                     say('undecided', 'Not decided, because the seeds differ too much, the feature spaces disagree or something has not run')])


# %%
v = pd.DataFrame([dict(claim='C4', statement='pre-training is what makes it work: FD at 50k', effect=.95, low=.4, high=1.5, floor=.2, verdict='supported',
                       tier='smoke', runs='a b'),
                  dict(claim='C5', statement='frozen is enough: not run', verdict='undecided', tier='smoke')])
print(markdown(verdict_table(v)), in_words(v), sep='\n\n')
test_eq(verdict_table(v).loc['C4'].tolist()[1:], ['supported','0.95','0.40 to 1.50','0.20','2'])
test_eq(verdict_table(v).loc['C5'].tolist()[1:], ['undecided','–','–','–','0'])
assert 'agrees with the paper: pre-training is what makes it work (C4). Does not agree: none. Not decided' in in_words(v)
assert in_words(v).endswith('frozen is enough (C5).')


# %% [markdown]
# ## RESULTS.md
#
# The page of a tier: tables, figures, and what machine, versions and time made them. Every number in it is read from a row or from a run's `DONE`.

# %%
#| export
def save_note(tier:Tier, name:str, note:str):
    "Keep a line of a study that belongs on the page"
    write_text(project_root()/'data'/'runs'/tier.name/'notes'/f'{name}.md', note)

def read_runs(
    tier:Tier,
    rows,          # DataFrame of rows
)->dict:           # run -> what it says of itself (`DONE`)
    "The runs of this machine that are behind these rows; published weights are none, for they were trained elsewhere"
    folder = project_root()/'data'/'runs'/tier.name
    found = {r:json.loads((folder/r/'DONE').read_text()) for r in rows[rows.here].run.unique() if (folder/r/'DONE').exists()}
    return {r:said for r,said in found.items() if 'code' in said}

def stale_runs(
    runs:dict,     # run -> what it says of itself
)->list:           # names
    "Runs that were trained by other code than today's"
    return [k for k,r in runs.items() if r['code'] != fingerprint(r['code'])]


# %%
now = dict(nimg=50_048, seconds=90., frozen_fraction={'generator':.868,'discriminator':0.}, peak_mib=700, code=fingerprint(), **record())
test_eq(stale_runs({'today':now, 'before':{**now, 'code':{**now['code'], 'training':'0123'}}}), ['before'])


# %%
#| export
def made_by(
    runs:dict,           # run -> what it says of itself
    minutes:float=None,  # that the reproduction took
)->str:                  # Markdown
    "What machine, versions and time made the runs behind the rows of this machine"
    if not runs: return 'Nothing ran on this machine: all rows are kept from the table.'
    machines = sorted({f"{r['processor']} ({r['machine']}), {r['cores']} cores; " + ', '.join(f'{k} {r[k]}' for k in ('python','torch','numpy','torch-fidelity')) for r in runs.values()})
    table = '\n'.join(f"| {k} | {r['nimg']:,} | {list(r['frozen_fraction'].values())[0]:.1%} | {r['seconds']/60:.1f} | {r['peak_mib']:,} |" for k,r in runs.items())
    took = f'`make reproduce` took {minutes:.0f} minutes, of what was not there before. ' if minutes else ''
    return (f"{'; '.join(machines)}. {took}Training alone: {sum(r['seconds'] for r in runs.values())/60:.0f} minutes, one thread per run, as many side by side as "
            f'there are cores.\n\n| run | images | frozen | minutes | peak memory, MiB |\n|---|--:|--:|--:|--:|\n{table}')


# %%
print(made_by({'d2o_f-s0-1234':now}, minutes=31.2))
assert '| d2o_f-s0-1234 | 50,048 | 86.8% | 1.5 | 700 |' in made_by({'d2o_f-s0-1234':now}) and '31 minutes' in made_by({'d2o_f-s0-1234':now}, 31.2)


# %%
#| export
def page_notes(
    tier:Tier,
    rows,          # DataFrame of rows
    runs:dict,     # run -> what it says of itself
)->list:           # paragraphs
    "What a reader of the tables has to know: which rows are not from here, which runs are stale, what the studies say"
    kept,stale = rows[~rows.here],stale_runs(runs)
    notes = [p.read_text() for p in sorted((project_root()/'data'/'runs'/tier.name/'notes').glob('*.md'))]
    if len(kept): notes.insert(0, f"Kept from the table, not run here: {', '.join(sorted(set(kept.study + ' ' + kept.arm)))}.")
    if stale: notes.insert(0, f"Trained by other code than today's (remove the folder under `data/runs` to train again): {', '.join(stale)}.")
    return notes

def verdict_section(tier:Tier)->list:
    "The paragraphs on verdicts; none where no claim has been decided yet"
    import pandas as pd
    if not verdicts_path(tier).exists(): return []
    v = pd.read_csv(verdicts_path(tier))
    return ['## The claims of the paper', in_words(v), 'An effect is larger the more the claim is right; differences of logarithms unless it is said otherwise. '
            'Supported: the whole interval over seeds lies above the floor. Refuted: below.', markdown(verdict_table(v))]


# %%
#| export
def other_tables(
    tier:Tier,
    rows,          # DataFrame of rows
)->list:           # Markdown
    "The arms of all other studies, each under the study that owns it"
    order = [*tier.samplers, *tier.arms]
    studies = {s:[a for a in order if a in set(r.arm)] for s,r in rows[~rows.study.isin(['d2o','pretrain'])].groupby('study')}
    return [t for s,arms in studies.items() for t in (f'### Arms of study `{s}`', markdown(over_metrics(rows[rows.study == s], arms)))]

def write_results(
    tier:Tier,
    minutes:float=None,    # that the reproduction took, where it is known
)->Path:                   # the page
    "Write the page of a tier from its rows and runs"
    rows,page = read_rows(tier),project_root()/tier.results
    runs,d2o = read_runs(tier, rows),rows[rows.study == 'd2o']
    arms = [a for a in (*tier.samplers, *tier.arms) if a in set(d2o.arm)]
    trained,floor_arms = [a for a in arms if a in tier.arms],[a for a in ('bootstrap','half') if a in set(rows.arm)]
    pictures = sorted(p for p in (project_root()/'figures'/tier.name).glob('*.png') if not p.name.startswith('.'))
    up = '../'*len(Path(tier.results).parent.parts)
    write_text(page, '\n\n'.join([f'# Results of the tier `{tier.name}`', f'Written by `make reproduce TIER={tier.name}`. {tier.claims[:1].upper()}{tier.claims[1:]}.',
        *verdict_section(tier),
        f'## Fréchet distance over real images seen\n\nFeatures of the first judge, {tier.eval_samples:,} samples against all images; mean ± standard deviation over seeds.',
        markdown(over_images(d2o, metrics_of(d2o)[0], trained)) if len(d2o) else 'None has run.',
        '## All measures at the end of training\n\n`bootstrap` and `half` are floors: real images scored as if they were samples (spread over repeats).',
        markdown(over_metrics(rows[(rows.study == 'd2o') | rows.arm.isin(floor_arms)], arms+floor_arms)), *other_tables(tier, rows), *page_notes(tier, rows, runs),
        '## Figures', *(f'![{p.stem}]({up}figures/{tier.name}/{p.name})' for p in pictures),
        '## Made by', made_by(runs, minutes)]) + '\n')
    return page


# %%
for f in rows_folder(smoke).iterdir(): f.unlink()
results_path(smoke).unlink()
noise = {'fd':[1.,2.],'recall':[.9,.8]}
both = {'half':noise, 'bootstrap':noise}
for arm in 'd2o','d2o_f':
    for s in 0,1:
        save_rows(smoke, sum((result_rows('d2o', arm, s, n, 1, {'fd':9e4/n+s, 'recall':.5}, both, f'{arm}-s{s}') for n in (5_000,50_000)), []))
for i in 0,1: save_rows(smoke, result_rows('pretrain', 'half', i, 0, 0, {m:v[i] for m,v in noise.items()}, both, 'digits'))
save_note(smoke, 'pretrain', 'Judges: two.')
write_text(rows_folder(smoke).parent/'d2o-s0'/'DONE', json.dumps(now))
collect(smoke)
(rows_folder(smoke)/'d2o--d2o_f--0.csv').unlink(); (rows_folder(smoke)/'d2o--d2o_f--1.csv').unlink()
assert 'claims of the paper' not in write_results(smoke).read_text()      # no verdicts yet
write_text(verdicts_path(smoke), v.to_csv(index=False))
page = write_results(smoke).read_text()
print(page)
assert 'Kept from the table, not run here: d2o d2o_f.' in page and 'Judges: two.' in page and '| d2o-s0 | 50,048 |' in page
assert '| d2o | 18.5 ± 0.707 | 2.30 ± 0.707 | 2 |' in page and '| half | 1.50 ± 0.707 |' in page
assert page.index('| C4 |') < page.index('## Fréchet') and in_words(v) in page
