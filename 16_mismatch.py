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
# # mismatch
#
# > Are two generators alike? Distances between models from their samples, beside what chance, seeds and unequal quality make of them

# %%
#| default_exp mismatch

# %%
#| export
import json
from copy import deepcopy
import numpy as np
import torch, torch.nn as nn, torch.nn.functional as F
from gdpt.checkpoints import write_text
from gdpt.data import keyed_generator, project_root
from gdpt.judges import isolated, split_indices
from gdpt.metrics import all_features, frechet
from gdpt.training import fingerprint

# %%
#| hide
import os, tempfile
from dataclasses import replace
import pandas as pd
from fastcore.test import *
from gdpt.data import load_images, to_float, to_uint8
from gdpt.denoiser import Denoiser
from gdpt.judges import load_judge
from gdpt.metrics import extract
from gdpt.sampling import draw_images
from gdpt.tiers import NetConfig, get_tier
from gdpt.unet import make_net
assert_close = torch.testing.assert_close
torch.set_num_threads(1)

# %% [markdown]
# The paper says that generators of unequal numbers of calls, or of unequal numbers of parameters, settle in *different local minima*: equally near to the
# data and still unlike each other. So two models are to be compared with each other, not each with the data. A distance between models is never zero,
# though, and has at least three sources that have nothing to do with the claim:
#
# - **chance**: two finite samples of one model differ;
# - **seeds**: two trainings that differ in nothing but their random numbers end apart;
# - **quality**: two models of which one is simply worse are apart for that reason.
#
# This room has the distances, and for each of the three what it takes to see past it.
#
# ## Models with known distances
#
# To be trusted, a distance has to be right where the answer is known. Here a *model* draws Gaussian images whose pixels are correlated as $e^{-d/\ell}$ at
# a distance of $d$ pixels. As both densities are known, the best that any classifier can do is known too: decide by the larger density.

# %%
GRID = torch.cartesian_prod(torch.arange(8.), torch.arange(8.))

class Field:
    "Gaussian images of 8x8 pixels with correlation exp(-distance/`length`)"
    def __init__(self, length): self.law = torch.distributions.MultivariateNormal(torch.zeros(64), .09*torch.exp(-torch.cdist(GRID, GRID)/length))
    def draw(self, n, *key):
        z = torch.randn(n, 64, generator=keyed_generator('field', *key))
        return to_uint8((z @ self.law.scale_tril.T).view(n,1,8,8))
    def log_density(self, images): return self.law.log_prob(to_float(images).flatten(1))

fields = {'A':Field(1.5), 'near A':Field(1.7), 'far from A':Field(2.5)}
print({k:f.draw(3, k).shape for k,f in fields.items()})


# %% [markdown]
# ## The many-model classifier
#
# If a classifier can tell samples of two models apart, the models differ; how often it is right measures by how much, on a scale that needs no feature
# space and has a known value for "alike": one half. One network learns to name the model, for all models at once: what helps to
# tell one pair apart is learnt from the samples of all of them, which makes it sharper than a classifier for each pair, and cheaper.
#
# Real images may be one of the "models". They have few grey levels (the digits have 17), and a classifier must not win by that: everything is
# rounded to the levels of the data first.

# %%
#| export
def grey(
    images:torch.Tensor, # uint8, (n,c,h,w)
    levels:int,          # equally spaced values that are kept; 256: all
)->torch.Tensor:         # float32 in [-1,1]
    "Images rounded to `levels` grey levels"
    if not 2 <= levels <= 256: raise ValueError(f'expected 2 to 256 grey levels, got {levels}')
    return (images.float()*((levels-1)/255)).round()*(2/(levels-1)) - 1

def grey_levels(
    images:torch.Tensor, # uint8
)->int:
    "How many different values the pixels of these images take"
    return len(images.unique())


# %%
data = load_images('digits')
test_eq((grey_levels(data.images), len(grey(data.images, 17).unique())), (17, 17))
assert (grey(data.images, 17) - to_float(data.images)).abs().max() < 1/250        # half a byte: the data themselves stay as they are
test_eq(len(grey(fields['A'].draw(50, 0), 17).unique()), 17)
test_fail(lambda: grey(data.images, 1), contains='2 to 256 grey levels')


# %%
#| export
def classifier(
    channels:int,     # of the images
    classes:int,
    width:int=32,     # of the first convolution
    features:int=128, # of the hidden layer
)->nn.Module:         # (n,c,h,w) to logits (n,classes)
    "Two convolutions and a hidden layer; the second halves the image, and nothing is pooled at 8x8: where a pixel is matters"
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2*width, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32*width, features), nn.ReLU(), nn.Linear(features, classes))


# %%
test_eq(classifier(1, 12)(torch.zeros(2,1,8,8)).shape, (2,12))
test_eq(classifier(3, 5)(torch.zeros(2,3,32,32)).shape, (2,5))


# %% [markdown]
# A part of each set is held out: samples at latents that the classifier has not seen. It is shown the sets equally often, so that a small set (the data)
# is not given up on. Weights, split and batches come from the seed, on one thread: the same sets give the same logits to the last bit.

# %%
#| export
def tell_apart(
    sets:list,               # uint8 images (n,c,h,w), one set per model, drawn at disjoint latents
    levels:int=256,          # grey levels that are kept
    epochs:float=10.,        # how often each image is shown, on average
    seed:int=0,              # of weights, split and batches
    test_fraction:float=.2,  # of each set, held out
)->list:                     # logits of the held-out images of each set, (n_test, models)
    "One classifier that names the model which drew an image (AdamW, one-cycle), tested on images it has not seen"
    if len(sets) < 2 or min(map(len, sets)) < 10: raise ValueError(f'expected two or more sets of at least 10 images, got {[len(s) for s in sets]}')
    if len({s.shape[1:] for s in sets}) > 1: raise ValueError(f'sets of unequal image shapes {sorted({tuple(s.shape[1:]) for s in sets})}: sizes must agree')
    parts = [split_indices(len(s), test_fraction, seed) for s in sets]
    shown = [grey(s[i], levels) for s,(i,_) in zip(sets, parts)]
    batch_size,lr = 256,3e-3
    steps = max(10, round(epochs*sum(map(len, shown))/batch_size))
    with isolated(1, 'tell apart', seed):
        net = classifier(sets[0].shape[1], len(sets))
        opt = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps)
        for _ in range(steps):
            x,y = model_batch(shown, batch_size)
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            opt.step(); schedule.step()
        with torch.no_grad(): return [net(grey(s[i], levels)) for s,(_,i) in zip(sets, parts)]

def model_batch(
    shown:list,      # float images, one set per model
    batch_size:int,
)->tuple:            # images, number of the model of each
    "Images of models picked at random, each model equally often on average"
    y = torch.randint(len(shown), (batch_size,)).sort().values
    rows = [torch.randint(len(s), (n,)) for s,n in zip(shown, torch.bincount(y, minlength=len(shown)).tolist())]
    return torch.cat([s[i] for s,i in zip(shown, rows)]), y


# %% [markdown]
# The accuracy of a pair is read off its own two logits: of the images of these two models, how many have the larger logit for the right one? Both models
# count alike, and a tie is half right.

# %%
#| export
def pair_accuracy(
    a,       # logit of the first model minus that of the second, on images of the first, (n,)
    b,       # the same on images of the second, (m,)
)->float:    # .5: no better than chance
    "How often two models are told apart"
    right = lambda m: (m > 0).double().mean() + (m == 0).double().mean()/2
    return ((right(a) + right(-b))/2).item()

def accuracy_matrix(
    logits:list,     # `tell_apart`
)->np.ndarray:       # (models,models), symmetric; .5 on the diagonal
    "How often each pair of models is told apart"
    of = lambda i,j: pair_accuracy(logits[i][:,i]-logits[i][:,j], logits[j][:,i]-logits[j][:,j])
    return np.array([[.5 if i == j else of(min(i,j), max(i,j)) for j in range(len(logits))] for i in range(len(logits))])


# %%
test_eq(pair_accuracy(torch.tensor([1.,2.]), torch.tensor([-1.])), 1.)
test_eq(pair_accuracy(torch.zeros(3), torch.zeros(2)), .5)
test_eq(pair_accuracy(torch.tensor([1.,-1.]), torch.tensor([1.])), .25)

# %% [markdown]
# ### Calibration
#
# Four sets: two of the same field at disjoint latents, one of a slightly different one, one of a rather different one. What can be reached is known.

# %%
names = ['A', 'A', 'near A', 'far from A']
sets = [fields[k].draw(2000, k, i) for i,k in enumerate(names)]
logits = tell_apart(sets, levels=17)
found = accuracy_matrix(logits)

def best_accuracy(a, b):
    "The accuracy of the best classifier there is, which knows both densities"
    margin = lambda x: fields[a].log_density(x) - fields[b].log_density(x)
    return pair_accuracy(margin(fields[a].draw(4000, 'best', a)), margin(fields[b].draw(4000, 'best', b)))

best = {k:best_accuracy('A', k) for k in ('near A','far from A')}
print(f"A against itself {found[0,1]:.3f} (best .5), near {found[0,2]:.3f} ({best['near A']:.3f}), far {found[0,3]:.3f} ({best['far from A']:.3f})")

# %%
by_chance = 3*.5/800**.5                                                # three standard errors of a share of 2 x 400 images
assert abs(found[0,1] - .5) < by_chance
assert .5 + by_chance < min(found[0,2], found[1,2]) and max(found[0,2], found[1,2]) + by_chance < min(found[0,3], found[1,3])
assert found[0,2] < best['near A'] + by_chance and found[0,3] < best['far from A'] + by_chance
assert abs(found[0,2] - found[1,2]) < 2*by_chance                       # both samples of A say the same of the others
assert torch.equal(torch.cat(tell_apart(sets, levels=17, epochs=1)), torch.cat(tell_apart(sets, levels=17, epochs=1)))
test_fail(lambda: tell_apart(sets[:1]), contains='two or more sets')
test_fail(lambda: tell_apart([sets[0], sets[1][:,:,:4]]), contains='sizes must agree')


# %% [markdown]
# ## What chance makes of it
#
# Pool two sets, deal them out again at random, measure: whatever comes out is chance. This *permutation floor* works for any distance. It is exact where
# the two sets are alike, and says from where on a measured value is none of chance's.

# %%
#| export
def permutation_floor(
    a:torch.Tensor,    # (n,...): images, features, or margins of a classifier
    b:torch.Tensor,    # (m,...)
    distance,          # called as `distance(a, b)`
    repeats:int=20,
    seed:int=0,
)->list:               # `repeats` distances
    "Distances between two sets once their members have been dealt out at random"
    pooled = torch.cat([a, b])
    orders = [torch.randperm(len(pooled), generator=keyed_generator('permutation', seed, i)) for i in range(repeats)]
    return [distance(pooled[o[:len(a)]], pooled[o[len(a):]]) for o in orders]


# %%
pixels = [extract(s) for s in sets]
chance = permutation_floor(pixels[0], pixels[2], frechet)
same,near,far = (frechet(pixels[0], pixels[i]) for i in (1,2,3))
print(f'FD in pixels: chance {min(chance):.3f} to {max(chance):.3f}; A against itself {same:.3f}, near A {near:.3f}, far from A {far:.3f}')
assert .8*min(chance) < same < 1.2*max(chance) and max(chance) < near < far

margins = logits[0][:,0]-logits[0][:,2],logits[2][:,0]-logits[2][:,2]
chance = permutation_floor(*margins, pair_accuracy)
print(f'accuracy: chance {min(chance):.3f} to {max(chance):.3f}')
assert max(chance) < found[0,2] and abs(np.mean(chance) - .5) < .02


# %% [markdown]
# ## Fréchet distances of all pairs
#
# Features once per model, statistics once per model, then every pair.

# %%
#| export
def frechet_matrix(
    features:list,   # float64 (n,f), one set per model (`gdpt.metrics.extract`)
)->np.ndarray:       # (models,models), symmetric, 0 on the diagonal
    "Fréchet distance of every pair of models in one space"
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
    stats,out = [fid_features_to_statistics(f) for f in features],np.zeros((len(features),)*2)
    for i in range(len(stats)):
        for j in range(i): out[i,j] = out[j,i] = fid_statistics_to_metric(stats[i], stats[j], verbose=False)[KEY_METRIC_FID]
    return out


# %%
fd = frechet_matrix(pixels)
print(fd.round(3))
test_eq(fd[2,0], frechet(pixels[2], pixels[0]))
test_eq((fd == fd.T).all(), True)


# %% [markdown]
# Both kinds at once: the classifier, and the Fréchet distance in the spaces of `gdpt.metrics`. What chance makes of each is found on one pair, two draws of
# one model.

# %%
#| export
def all_distances(
    sets:list,       # uint8 (n,c,h,w), one per model, drawn at disjoint latents; the first two of the same model
    judges:list,     # two feature spaces
    levels:int=256,  # grey levels that the classifier sees
    seed:int=0,      # of the classifier
)->tuple:            # measure -> (models,models); measure -> distances by chance, of the first two sets dealt out at random
    "Every pair of models by the classifier (`mc`) and by Fréchet distance in three spaces"
    logits,features = tell_apart(sets, levels, seed=seed),[all_features(s, judges) for s in sets]
    spaces = {m:[f[k] for f in features] for k,m in enumerate(('fd','fd_alt','fd_pix'))}
    chance = {m:permutation_floor(f[0], f[1], frechet) for m,f in spaces.items()}
    margins = [logits[i][:,0]-logits[i][:,1] for i in (0,1)]
    return ({'mc':accuracy_matrix(logits), **{m:frechet_matrix(f) for m,f in spaces.items()}}, {'mc':permutation_floor(*margins, pair_accuracy), **chance})


# %%
judge_home = tempfile.TemporaryDirectory()
judges = [load_judge(replace(c, epochs=2), judge_home.name) for c in get_tier('tiny').judges]
order = torch.randperm(data.n, generator=keyed_generator('parts'))
part,labels = data.images[order],data.labels[order]
distances,chance = all_distances([part[:500], part[500:1000], part[1000:][labels[1000:] % 2 == 1]], judges, levels=17)
for m,d in distances.items(): print(f'{m:8s} two parts of the digits {d[0,1]:.3g}, chance up to {max(chance[m]):.3g}, to the odd ones {d[0,2]:.3g}')
assert all(d[0,1] < 1.1*max(chance[m]) < d[0,2] for m,d in distances.items())


# %% [markdown]
# ## The same noise, two models
#
# All models of this project start from the same kind of latents, so two of them can be asked for the same one: do they make the same image of it? The
# measure is the root of the mean squared distance of image pairs, relative to what it would be if the pairs were drawn at random: 0 for equal images,
# 1 for images that have nothing to do with each other. What random pairs have is known without drawing any: the sum of both variances and of the
# squared distance between the means.

# %%
#| export
def flat_pair(
    a:torch.Tensor,  # uint8, (n,c,h,w)
    b:torch.Tensor,  # of the same latents, in the same order
)->tuple:            # float64, (n,c*h*w) each
    "Two sets of images, image by image; refuses sets that cannot be paired"
    if a.shape != b.shape or len(a) < 2: raise ValueError(f'expected two sets of one shape and at least 2 images, got {tuple(a.shape)} and {tuple(b.shape)}')
    return a.flatten(1).double()/127.5, b.flatten(1).double()/127.5

def paired_l2(
    a:torch.Tensor,  # uint8, (n,c,h,w)
    b:torch.Tensor,  # of the same latents, in the same order
)->float:            # 0: equal images; 1: as far apart as random pairs
    "Relative distance between the images that two models make of the same noise"
    a,b = flat_pair(a, b)
    random = a.var(0, unbiased=False).sum() + b.var(0, unbiased=False).sum() + (a.mean(0)-b.mean(0)).square().sum()
    return ((a-b).square().sum(1).mean()/random).sqrt().item()


# %% [markdown]
# The second question is whether *which* image belongs to which noise is kept at all, however much each image has changed. For every latent,
# rank the other model's images by their distance to this model's image: at which percentile does the one from the same latent stand? 0: it is always
# the nearest one; one half: chance. An image that all latents share, a collapsed model, is at one half too, since ties count half.

# %%
#| export
def pairing_rank(
    a:torch.Tensor,  # uint8, (n,c,h,w): the model that is asked about
    b:torch.Tensor,  # the reference at the same latents, in the same order
)->float:            # 0: the true pair is always the nearest; .5: chance
    "Mean percentile rank of the true pair among all pairs with other latents"
    a,b = flat_pair(a, b)
    d = torch.cdist(a, b, compute_mode='donot_use_mm_for_euclid_dist')
    true = d.diagonal()[:,None]
    below = (d < true).double().sum(1) + ((d == true).double().sum(1) - 1)/2
    return (below/(len(a)-1)).mean().item()


# %%
digits,other = part[:400],part[400:800]
noisy = lambda s: to_uint8(to_float(digits) + s*torch.randn(digits.shape, generator=keyed_generator('noisy')))
shuffled = digits.roll(1, 0)
rows = {'itself':digits, 'faint noise':noisy(.2), 'strong noise':noisy(1.), 'shuffled':shuffled, 'other images':other, 'one image':digits[:1].expand(400,-1,-1,-1)}
measured = {k:(paired_l2(v, digits), pairing_rank(v, digits)) for k,v in rows.items()}
for k,(l2,rank) in measured.items(): print(f'{k:14s} relative distance {l2:.3f}, rank {rank:.3f}')

# %%
test_eq(measured['itself'], (0., 0.))
assert measured['faint noise'] < measured['strong noise'] < measured['shuffled']
for k in 'shuffled','other images': test_close(measured[k], (1., .5), eps=.03)
test_close(measured['one image'][1], .5, eps=.06)
random = torch.cdist(digits.flatten(1).double(), other.flatten(1).double()).square().mean()     # the closed form against all 160,000 pairs
assert_close((digits-0.).sub(other-0.).flatten(1).double().square().sum(1).mean().div(random).sqrt().item(), paired_l2(digits, other), rtol=1e-6, atol=0)
test_fail(lambda: paired_l2(digits, digits[:9]), contains='two sets of one shape')


# %% [markdown]
# ## Equal quality first
#
# Models that are compared should be equally near to the data, or the comparison says which is better trained. Runs keep snapshots, so each model can be taken
# at the point of its training where it is as good as the others ever get: the common target is the *worst over models of each model's best*, and each model
# gives the snapshot nearest to it.

# %%
#| export
def matched(
    rows,              # DataFrame of rows (`gdpt.report`) of runs whose snapshots are there
    arms,              # to be compared
    metric:str='fd',   # what is made equal
)->tuple:              # DataFrame with one row per arm and seed; the target
    "For every model the snapshot whose distance to the data is nearest to what all of them reach"
    r = rows[(rows.metric == metric) & rows.arm.isin(arms) & (rows.nimg > 0)].drop_duplicates(['arm','seed','nimg'])
    if not len(r): raise ValueError(f"no rows of {metric} for {', '.join(arms)}: run them first")
    target = r.groupby(['arm','seed']).value.min().max()
    nearest = r.assign(gap=(r.value-target).abs()).sort_values(['arm','seed','gap','nimg']).drop_duplicates(['arm','seed'])
    return nearest.drop(columns='gap').reset_index(drop=True), target


# %%
curve = lambda arm,seed,values: [dict(arm=arm, seed=seed, nimg=n, nfe=1, metric='fd', value=v, run=f'{arm}-s{seed}') for n,v in zip((10,25,50), values)]
rows = pd.DataFrame(curve('d2o', 0, (20,9,5)) + curve('d2o', 1, (22,8,4)) + curve('d2o_4step', 0, (30,14,8)) + curve('d2o_4step', 1, (31,15,8.5)))
chosen,target = matched(rows, ['d2o','d2o_4step'])
print(chosen[['arm','seed','nimg','value']])
test_eq((target, chosen.nimg.tolist()), (8.5, [25,25,50,50]))
test_fail(lambda: matched(rows, ['d3o']), contains='no rows of fd for d3o')


# %% [markdown]
# ## Beyond the seeds
#
# Say there are models of two *arms*, `a` and `b`, each trained from several seeds. The arms differ if a model of `a` is farther from a model of `b` than
# models of one arm are from each other: the **excess** is the mean distance across arms minus the mean of the two means within.
#
# Two models of the same seed share the start of the discriminator and the order of the images. They can be close for that reason, so *pairs of one seed are
# left out*, across arms as well as within.
#
# For models at points $x$ with squared distances, seeds being random displacements, the excess has the squared distance between the arms' centres for
# its mean: the seeds cancel exactly.

# %%
#| export
def block(
    distances,     # (models,models)
    models:list,   # of pairs: arm, seed
    a:str,         # arm
    b:str,         # arm; may be `a`
    seeds:list,    # in this order
)->np.ndarray:     # (seeds,seeds): seed of `a` down, of `b` across
    "The distances between the models of two arms"
    at = {m:i for i,m in enumerate(models)}
    missing = [m for m in ((arm,s) for arm in (a,b) for s in seeds) if m not in at]
    if missing: raise ValueError(f'no model {missing[0]} among {models}')
    return np.asarray(distances)[np.ix_([at[a,s] for s in seeds], [at[b,s] for s in seeds])]

def pair_mean(
    d:np.ndarray,     # (seeds,seeds)
    w:np.ndarray,     # how often each seed counts, (draws,seeds)
)->np.ndarray:        # (draws,)
    "Mean distance over pairs of distinct seeds"
    off = 1-np.eye(len(d))
    return np.einsum('rs,st,rt->r', w, np.where(off, d, 0), w)/np.einsum('rs,st,rt->r', w, off, w)

def excess(
    distances,     # (models,models)
    models:list,   # of pairs: arm, seed
    a:str,
    b:str,
    seeds:list,
):                 # a function of weights (draws,seeds), as `over_seeds` takes it
    "Mean distance across two arms, less the mean of the two means within: cross-seed pairs alone"
    cross,aa,bb = (block(distances, models, *arms, seeds) for arms in ((a,b), (a,a), (b,b)))
    return lambda w: pair_mean(cross, w) - (pair_mean(aa, w) + pair_mean(bb, w))/2


# %% [markdown]
# Pairs are not independent: each seed is in many of them. So the interval comes from redrawing *seeds* (a bootstrap of nodes): draw as many seeds as there
# are, with replacement, and take the mean over the pairs of distinct seeds among them. With four seeds, the spread of such draws is too small (by the
# root of 3/4, as any standard deviation with `n` below the root) and its quantiles know nothing of how poorly four values determine a spread. So
# the interval is the estimate plus and minus Student's quantile for `n-1` degrees of freedom times the corrected spread. Samples need no bootstrap of
# their own: each model has its own, so their noise is part of what differs between seeds. Below three seeds there is no interval.

# %%
#| export
def over_seeds(
    statistic,           # of weights (draws,seeds), to (draws,)
    seeds:int,           # how many
    repeats:int=2_000,   # bootstrap draws
    level:float=.95,
)->tuple:                # estimate, low, high; the latter two not a number below three seeds
    "A statistic over seeds with its interval: node bootstrap for the spread, Student's t for its uncertainty"
    from scipy.stats import t
    estimate = float(statistic(np.ones((1,seeds)))[0])
    if seeds < 3: return estimate, float('nan'), float('nan')
    draws = torch.randint(seeds, (repeats,seeds), generator=keyed_generator('seeds', seeds)).numpy()
    with np.errstate(invalid='ignore'): again = statistic((draws[:,:,None] == np.arange(seeds)).sum(1).astype(float))
    spread = again[np.isfinite(again)].std()*(seeds/(seeds-1))**.5            # one seed drawn every time has no pairs
    half = t.ppf((1+level)/2, seeds-1)*spread
    return estimate, estimate-half, estimate+half

def mean_difference(
    a,        # one value per seed of one arm
    b,        # ... of the other, seeds in the same order
):            # a function of weights (draws,seeds)
    "Mean of one arm minus mean of the other"
    difference = np.asarray(a, float) - np.asarray(b, float)
    return lambda w: w @ difference/w.sum(1)


# %%
d = np.array([[0,1,2],[1,0,3],[2,3,0]], float)
test_eq(pair_mean(d, np.ones((1,3)))[0], 2.)
test_eq(pair_mean(d, np.array([[2.,1,0]]))[0], 1.)                                        # seed 0 twice: its distance to itself is no pair
low_high = over_seeds(mean_difference([1,2,3], [0,0,0]), 3)
print(low_high)
test_close(low_high[0], 2.)
test_close(low_high[2]-2., 4.303*1/3**.5, eps=.1)                                         # for a mean it is Student's interval
assert np.isnan(over_seeds(mean_difference([1,2], [0,0]), 2)[1])


# %% [markdown]
# How often does such an interval hold the truth? Models are points; those of one seed share a displacement, as trainings of one seed share their
# order of images. 400 invented studies with four seeds, with equal arms and with arms a known distance apart. Where the arms are equal the interval
# is wider than it need be (a claim is not supported too easily); else it is about right. Beside it, what
# is found if the pairs of one seed are not left out: they are nearer than the rest, and the excess is too small.

# %%
def invented(gap, key, seeds=4, dim=16):
    "Squared distances between models of two arms whose centres are `gap` apart"
    g = keyed_generator('invented', key)
    shared,own = torch.randn(1,seeds,dim, generator=g),torch.randn(2,seeds,dim, generator=g)
    centre = torch.zeros(2,1,dim); centre[1,0,0] = gap
    x = (centre + (shared+own)/dim**.5).double().flatten(0,1)
    return torch.cdist(x, x).square().numpy(), [(arm,s) for arm in 'ab' for s in range(seeds)]

for gap in 0.,1.,2.:
    found = [over_seeds(excess(*invented(gap, k), 'a', 'b', [0,1,2,3]), 4, repeats=200) for k in range(400)]
    naive = [d[:4,4:].mean() - (d[:4,:4].sum() + d[4:,4:].sum())/24 for d,_ in (invented(gap, k) for k in range(400))]
    covered = np.mean([lo <= gap**2 <= hi for _,lo,hi in found])
    mean = np.mean([f[0] for f in found])
    print(f'true excess {gap**2:.0f}: mean {mean:+.3f}, {covered:.0%} of the intervals hold it; with pairs of one seed {np.mean(naive):+.3f}')
    assert abs(mean - gap**2) < .1 and covered > .92
    assert np.mean(naive) < mean - .2
test_fail(lambda: excess(*invented(0., 0), 'a', 'c', [0,1]), contains="no model ('c', 0)")


# %% [markdown]
# ## Between two sets of weights
#
# Two minima are different if there is a hill between them. Walk on the straight line from one set of weights to the other and measure as one goes: the
# **barrier** is the largest excess over the straight line between the two ends' values (Frankle et al. 2020, with a distance to the data in place of the
# loss). Group norms hold no statistics of the data, so nothing has to be recalibrated on the way. A hill is no proof: weights that
# differ by a renumbering of their channels have one and are the same function. No hill *is* one: the two share a valley.

# %%
#| export
def along(
    start,       # `Denoiser`
    end,         # of the same network
    measure,     # called with a `Denoiser`, returns a number
    ts,          # places on the line: 0 is `start`, 1 is `end`
)->list:         # a number for each
    "Measure the models on the straight line between two sets of weights"
    a,b,d = start.state_dict(),end.state_dict(),deepcopy(start)
    if {k:v.shape for k,v in a.items()} != {k:v.shape for k,v in b.items()}: raise ValueError('the two ends are different networks: there is no line between them')
    out = []
    for t in ts:
        d.load_state_dict({k:torch.lerp(a[k], b[k], float(t)) for k in a})
        out.append(measure(d))
    return out

def barrier(
    ts,          # places on the line, 0 to 1, ascending, with both ends
    values,      # measured there
)->float:        # 0: no hill
    "The largest excess over the straight line between the values at the ends"
    ts,values = np.asarray(ts, float),np.asarray(values, float)
    if len(ts) < 3 or ts[0] != 0 or ts[-1] != 1: raise ValueError(f'expected at least three places from 0 to 1, got {ts.tolist()}')
    return float((values - (values[0] + ts*(values[-1]-values[0]))).max())


# %%
test_eq(barrier([0,.5,1], [2,7,4]), 4.)
test_eq(barrier([0,.5,1], [2,2.5,4]), 0.)
test_fail(lambda: barrier([0,.5], [1,2]), contains='three places from 0 to 1')
nets = []
for s in 0,1:
    torch.manual_seed(s)
    net = make_net(NetConfig(model_channels=16))
    for p in net.parameters(): torch.nn.init.normal_(p, std=.1)                     # the last layers start at zero otherwise
    nets.append(Denoiser(net, .75).eval().requires_grad_(False))
drawn = along(*nets, lambda d: draw_images(d, (1,8,8), 4), [0,.5,1])
assert torch.equal(drawn[0], draw_images(nets[0], (1,8,8), 4)) and torch.equal(drawn[2], draw_images(nets[1], (1,8,8), 4))     # the ends exactly
assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[2], drawn[1])
wider = Denoiser(make_net(NetConfig(model_channels=32)), .75)
test_fail(lambda: along(nets[0], wider, id, [0,1]), contains='different networks')


# %% [markdown]
# ## Kept numbers
#
# Matrices of many models take minutes, figures are redrawn often. A part of a study is kept under everything that decides it.

# %%
#| export
def kept(
    name:str,    # of the part
    key:str,     # everything that decides it (`gdpt.runs.measured_by`); this room is added
    make,        # called without arguments if it is not there; returns plain data
):               # what `make` returned, now or before
    "Numbers that are expensive to find, found once"
    path = project_root()/'data'/'cache'/'mismatch'/f"{name}-{key}-{fingerprint(['mismatch'])['mismatch'][:6]}.json"
    if not path.exists(): write_text(path, json.dumps(make()))
    return json.loads(path.read_text())


# %%
os.environ['GDPT_ROOT'] = tempfile.mkdtemp()
calls = []
for _ in range(2): test_eq(kept('toy', 'abc', lambda: calls.append(0) or [1., 2.]), [1., 2.])
test_eq(len(calls), 1)
test_eq(kept('toy', 'other', lambda: 3), 3)
