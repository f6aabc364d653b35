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
# # studies
#
# > Notebooks run headlessly: one study is one notebook with one cell of parameters, and a list of jobs says what runs after what

# %%
#| default_exp studies

# %%
#| export
import ast
from dataclasses import dataclass, replace
from pathlib import Path
from gdpt.data import project_root
from gdpt.tiers import Tier, get_tier

# %%
#| hide
import tempfile
from fastcore.test import *


# %% [markdown]
# ## Parameters that are not declared
#
# `papermill study.ipynb out.ipynb -p seed 3` puts a cell of new values after the one tagged `parameters`. A name that the study does not have,
# `seed` for `seeds`, only draws a warning: the run goes on with the defaults, for hours, and looks like what was asked for. So every study opens with
# `begin`, which looks at the cells executed so far and refuses. It works for whoever starts the notebook, by hand or through Snakemake.

# %%
#| export
def assigned(
    source:str,    # of a cell
)->set:            # names
    "The names that a cell of plain assignments sets"
    return {t.id for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)}

def refuse_undeclared(
    cells:list,    # sources of the cells executed so far, in order (IPython's `In`)
):
    "Raise if papermill's injected cell sets a name that the cell before it does not"
    for declared,injected in zip(cells, cells[1:]):
        if not injected.startswith('# Parameters\n'): continue
        unknown = assigned(injected) - assigned(declared)
        if unknown: raise ValueError(f'undeclared parameters {sorted(unknown)}: this study has {sorted(assigned(declared))}')


# %%
defaults = "tier = 'tiny'        # budget\nseeds = None         # fine-tuning seeds"
test_eq(assigned(defaults), {'tier','seeds'})
refuse_undeclared(['import torch', defaults, '# Parameters\nseeds = [3]\n'])
test_fail(lambda: refuse_undeclared([defaults, '# Parameters\nseed = 3\n']), contains="undeclared parameters ['seed']: this study has ['seeds', 'tier']")


# %% [markdown]
# ## The frame of a study
#
# `begin` gives a study its tier and a folder for pictures.

# %%
#| export
@dataclass
class Study:
    "One execution of a study notebook"
    name:str           # of the notebook
    tier:Tier
    figures:Path       # folder for its pictures

def begin(
    name:str,          # of the notebook
    tier:str,          # of the study's parameters
    cells:list,        # IPython's `In`
)->Study:
    "Check the parameters of a study and open it"
    refuse_undeclared(cells)
    tier = get_tier(tier)
    return Study(name, tier, project_root()/'figures'/tier.name)


# %%
study = begin('d2o', 'smoke', [defaults])
test_eq((study.tier.name, study.figures.parts[-2:]), ('smoke', ('figures','smoke')))
test_fail(lambda: begin('d2o', 'huge', [defaults]), contains="unknown tier 'huge'")


# %% [markdown]
# ## From Python
#
# `run_study` is papermill with the mistakes refused before a kernel starts, and with the notebook's own error, not papermill's account of it, when one is raised.

# %%
#| export
def run_study(
    path,        # the study, a notebook with one cell tagged `parameters`
    out,         # where the executed copy goes
    **params,    # its parameters
)->Path:         # the executed copy
    "Run a study headlessly; refuse a parameter that it does not declare"
    import papermill as pm
    declared = pm.inspect_notebook(str(path))
    unknown = set(params) - set(declared)
    if unknown: raise ValueError(f'{path}: undeclared parameters {sorted(unknown)}, this study has {sorted(declared)}')
    get_tier(params.get('tier', 'tiny'))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    try: pm.execute_notebook(str(path), str(out), params, progress_bar=False)
    except pm.PapermillExecutionError as e: raise RuntimeError(f'{path} failed: {e.ename}: {e.evalue} (executed as far as that in {out})') from None
    return Path(out)


# %% [markdown]
# A study of two cells shows it.

# %%
import nbformat
from nbformat.v4 import new_code_cell, new_notebook
folder = Path(tempfile.mkdtemp())
cell = new_code_cell("tier = 'smoke'\nn = 2"); cell.metadata.tags = ['parameters']
kernel = {'kernelspec':{'name':'python3','display_name':'python3','language':'python'}}
nbformat.write(new_notebook(cells=[cell, new_code_cell("from gdpt.studies import begin\nbegin('toy', tier, In)\nprint(6//n)")], metadata=kernel), folder/'toy.ipynb')
done = run_study(folder/'toy.ipynb', folder/'out'/'toy.ipynb', n=3)
assert "'text': '2\\n'" in str(nbformat.read(done, 4).cells[-1].outputs)
test_fail(lambda: run_study(folder/'toy.ipynb', folder/'out.ipynb', m=3), contains="undeclared parameters ['m']")
test_fail(lambda: run_study(folder/'toy.ipynb', folder/'out.ipynb', tier='huge'), contains="unknown tier 'huge'")
test_fail(lambda: run_study(folder/'toy.ipynb', folder/'out.ipynb', n=0), contains='ZeroDivisionError')


# %% [markdown]
# ## The graph
#
# A job is one headless execution of a study. *Run* studies train and measure arms: `d2o` those of the headline, cut into one job for each fine-tuning, `tune` all others, one job for
# all seeds of an arm. *Report* studies read what these leave. Snakemake takes this list (`Snakefile`), runs what is out of date and goes on after a failure or a kill.

# %%
#| export
@dataclass(frozen=True)
class Job:
    "One headless execution of a study"
    name:str                  # of its sentinel, log and executed copy
    study:str                 # the notebook
    params:tuple=()           # parameters beside the tier, as pairs
    needs:tuple=()            # names of jobs that must be done before
    priority:int=0            # higher ones start first


# %% [markdown]
# Each report with the arms that it compares. An arm belongs to the first study that names it: under that name its rows are kept, and the others read them there.

# %%
#| export
STUDY_ARMS = {
    'd2o':                 ('teacher','untuned','d2o','d2o_f','from_random','random_frozen'),
    'local_minima':        ('d2o','d2o_2step','d2o_4step','teacher','teacher_half','teacher_quarter','d2o_half','d2o_quarter','d2o_pre4','pd_8','pd_4','pd_2','pd','cd'),
    'gan_vs_distillation': ('teacher','d2o','pd_8','pd_4','pd_2','pd','cd','ctm','rcd','pd_gan','cd_gan','ctm_gan','rcd_gan','d2o_teacher'),
    'pretraining':         ('teacher','from_random','d2o_pre16','d2o_pre4','d2o'),
    'freezing':            ('teacher','from_random','d2o','d2o_f','d2o_f2','d2o_f3','norm_affine','encoder_only','decoder_only','lora','random_frozen'),
    'spectrum':            ('teacher','d2o','d2o_f','from_random'),
    'discriminators':      ('teacher','d2o','d2o_encoder','d2o_random_features','d2o_classifier','d2o_hinge','d2o_r1_low','d2o_r1_high','teacher_cond','d2o_cond','d2o_f_cond')}
OWNER = {arm:study for study,arms in reversed(STUDY_ARMS.items()) for arm in arms} | {arm:'gan_vs_distillation' for arm in ('pd_8','pd_4','pd_2','pd','cd')} | {'d2o_pre4':'pretraining'}
MORE_SEEDS = ('d2o_2step','d2o_4step','d2o_half','d2o_quarter')      # compared with each other across seeds
ONE_SEED = ('random_frozen','d2o_f2','d2o_f3','norm_affine','encoder_only','decoder_only','lora','d2o_random_features','d2o_hinge','d2o_r1_low','d2o_r1_high',
            'teacher_cond','d2o_cond','d2o_f_cond')                   # does it fall out of the others' range?

FURTHER = {'local_minima':('d2o', lambda tier: tier.more_seeds), 'freezing':('random_frozen', lambda tier: tier.seeds)}    # study -> arm that it wants in more seeds than its owner does

def seeds_of(tier:Tier, arm:str)->tuple:
    "The seeds of an arm: three as a rule (`Tier.seeds`)"
    return tier.more_seeds if arm in MORE_SEEDS else tier.seeds[:1] if arm in ONE_SEED else tier.seeds


# %%
test_eq((OWNER['d2o'], OWNER['cd'], OWNER['d2o_2step'], OWNER['lora']), ('d2o','gan_vs_distillation','local_minima','freezing'))
assert all(seeds_of(get_tier('tiny'), a) for a in OWNER)


# %% [markdown]
# Jobs of arms. The denoisers that everything else waits for come first, then the long ones: generators of several calls, and what waits for nothing.

# %%
#| export
def arm_jobs(tier:Tier, arm:str)->list:
    "The runs of an arm: one job per seed in the headline, one for all seeds elsewhere"
    if arm in tier.samplers: needs,long = (f'pretrain.{tier.samplers[arm][0]}',),True
    else:
        config = tier.arms[arm]
        free = config.init == 'random' and config.discriminator == 'scratch'
        teacher = tier.teachers.get(arm)
        needs = () if free else (f'{OWNER[teacher]}.{teacher}',) if teacher else (f'pretrain.{tier.denoiser_for(arm)}',)
        long = free or config.sample_steps > 1
    seeds,study = seeds_of(tier, arm),OWNER[arm]
    if study != 'd2o': return [Job(f'{study}.{arm}', 'tune', (('study',study), ('arms',[arm]), ('seeds',list(seeds))), needs, 1+long)]
    if arm in tier.samplers: return [Job(f'd2o.{arm}', 'd2o', (('arms',[arm]), ('seeds',list(seeds))), needs, 2)]
    return [Job(f'd2o.{arm}.{s}', 'd2o', (('arms',[arm]), ('seeds',[s])), needs, 1+long) for s in seeds]

def run_jobs(tier:Tier, study:str)->list:
    "All runs behind a study, pre-training first"
    arms = list(dict.fromkeys(a for arm in STUDY_ARMS[study] for a in (*stages(tier, arm), arm) if a in tier.arms or a in tier.samplers))     # a tier need not have them all
    runs = [j for a in arms for j in arm_jobs(tier, a)]
    if study in FURTHER and FURTHER[study][0] in arms:
        arm,wanted = FURTHER[study]
        more = [s for s in wanted(tier) if s not in seeds_of(tier, arm)]
        runs += [replace(arm_jobs(tier, arm)[0], name=f'{study}.{arm}', study='tune', params=(('study',study), ('arms',[arm]), ('seeds',more)))] if more else []
    denoisers = dict.fromkeys(n for j in runs for n in j.needs if n.startswith('pretrain.'))
    return [Job(n, 'pretrain', (('denoiser',n.split('.')[1]),), (), 3) for n in denoisers] + runs

def stages(tier:Tier, arm:str)->list:
    "The arms whose generators an arm needs, first to last"
    teacher = tier.teachers.get(arm)
    return [*stages(tier, teacher), teacher] if teacher else []


# %%
#| export
REPORTS = {'data_efficiency':'d2o', 'gallery':'d2o', 'state_of_the_art':'d2o', **{s:s for s in STUDY_ARMS if s != 'd2o'}}    # report -> whose arms it reads

def jobs(
    tier:Tier,
    study:str='headline',    # 'headline', 'all', or one study
)->list:                     # jobs, each after those that it needs
    "What has to run"
    report = lambda r: [*run_jobs(tier, REPORTS[r]), Job(r, r, (), tuple(j.name for j in run_jobs(tier, REPORTS[r])))]
    pre = [j for j in run_jobs(tier, 'd2o') if j.study == 'pretrain']
    wanted = {'headline':['data_efficiency','gallery'], 'all':[*REPORTS], 'verdicts':[*REPORTS], **{r:[r] for r in REPORTS}}
    if study in ('pretrain','d2o'): return pre if study == 'pretrain' else run_jobs(tier, 'd2o')
    if study not in wanted: raise ValueError(f"unknown study {study!r}: expected one of {', '.join(['pretrain','d2o',*wanted])}")
    found = list({j.name:j for r in wanted[study] for j in report(r)}.values())
    return [*found, Job('verdicts', 'verdicts', (), tuple(wanted[study]))]


# %%
tiny = get_tier('tiny')
for j in jobs(tiny, 'all'): print(f'{j.name:36s} {dict(j.params)}', *(['after', j.needs[0], '...' if j.needs[1:] else ''] if j.needs else []))
for study in ('headline','all','pretrain','d2o',*REPORTS):
    names = [j.name for j in jobs(tiny, study)]
    assert all(set(j.needs) <= set(names[:i]) for i,j in enumerate(jobs(tiny, study))), study     # each after those that it needs
    test_eq(len(names), len(set(names)))
test_eq({j.study for j in jobs(tiny)}, {'pretrain','d2o','data_efficiency','gallery','verdicts'})
assert len(jobs(tiny, 'freezing')) < len(jobs(tiny, 'all'))
test_fail(lambda: jobs(tiny, 'd3o'), contains="unknown study 'd3o': expected one of")
