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
# # tiers
#
# > The budgets: every number that decides how a run goes, as plain frozen data

# %%
#| default_exp tiers

# %%
#| hide
import tempfile
from fastcore.test import *

# %%
#| export
import hashlib, json, os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Literal


# %% [markdown]
# A *tier* is a budget: which images, which network, how many images of training, which machine. The notebooks and the code path are the same
# for all of them, so what works on two CPU cores in half an hour is what runs on a GPU. A tier is data, never an `if`.
#
# This room imports nothing heavier than the standard library, because the command line reads its defaults from here.
#
# ## The network
#
# The names follow Karras et al. 2022 (EDM), Appendix F: `ddpmpp` is DDPM++ (used with VP), `ncsnpp` is NCSN++ (used with VE), `adm` is the
# network of Dhariwal & Nichol 2021.

# %%
#| export
@dataclass(frozen=True)
class NetConfig:
    "A raw network F(x, c_noise, labels), before preconditioning"
    arch:Literal['ddpmpp','ncsnpp','adm']='ddpmpp' # family, EDM Table 7
    resolution:int=8               # height and width of the images, pixels
    channels:int=1                 # image channels
    model_channels:int=32          # channels at full resolution, before `channel_mult`
    channel_mult:tuple[int,...]=(2,2)    # channel multiplier per resolution level
    num_blocks:int=1               # residual blocks per level of the encoder (the decoder has one more)
    attn_resolutions:tuple[int,...]=(4,) # resolutions with self-attention, pixels
    channel_mult_emb:int=2         # width of the embedding over `model_channels`
    dropout:float=0.               # dropout inside the residual blocks, a probability
    label_dim:int=0                # number of classes; 0: unconditional
    augment_dim:int=0              # inputs of EDM's augmentation embedding; 0: none
    target_level:bool=False        # is it told a second noise level, to which a step leads (CTM, RCD)?
    decoder:Literal['standard','skip']='standard' # 'skip': every level of the decoder draws an image, and they are added up (Song et al. 2021)


# %% [markdown]
# ## Two kinds of run
#
# A config holds *exactly* what would change a number: two runs of equal config on one machine give the same numbers, and runs are filed under
# a hash of it. Where to write and how often to save are not in it.

# %%
#| export
@dataclass(frozen=True)
class PretrainConfig:
    "EDM pre-training (Karras et al. 2022, Table 1)"
    tier:str='tiny'                # whose presets these are (`Tier.name`)
    net:NetConfig=NetConfig()
    data:str='digits'              # 'digits', a set prepared by `gdpt data`, or any other source of images (`gdpt.data.load_images`)
    data_checksum:str=''           # of those images; filled in by the run
    seed:int=0                     # of the initial weights and of every random number in training
    images:int=400_000             # training length: images shown
    batch_size:int=128             # images per step
    shard_size:int=128             # images per forward pass; a batch is a sum over its shards
    lr:float=1e-3                  # Adam's learning rate after warm-up
    lr_final:float=.05             # cosine decay ends at this fraction of `lr`; 1: constant
    warmup_images:int=10_000       # linear warm-up, images
    betas:tuple[float,float]=(.9,.999) # Adam's
    P_mean:float=-1.2              # mean of ln(sigma) in training
    P_std:float=1.2                # its standard deviation
    sigma_data:float=0.            # standard deviation of the images in [-1,1]; 0: measured on `data`
    ema_halflife_kimg:float=25.    # half-life of the weight average, thousands of images
    ema_rampup:float=.05           # ... and at most this fraction of the images seen so far
    snapshots:tuple[int,...]=()    # image counts at which the averaged weights are kept, beside the last
    sample_steps:int=18            # noise levels of the Heun sampler that draws from it (NFE is twice that, less 1)
    threads:int=1                  # CPU threads; part of the config because sums come out differently in other numbers of them
    precision:Literal['fp32','tf32','bf16']='fp32' # of products and convolutions in training; samples are drawn in fp32
    compile:bool=False             # torch.compile for the network that is trained
    sampler:ClassVar[str]='heun'   # `gdpt.sampling.SAMPLERS`


# %% [markdown]
# The second kind turns a denoiser into a generator of one or a few calls. Its default is D2O: the GAN loss alone, everything trainable. `losses` names what is minimised,
# and several are added up; each is a class in a notebook of `nbs/objectives/`, so a rival method is a notebook and a preset.

# %%
#| export
Freeze = Literal[0, 1, 2, 3, 'but_norm_affine', 'but_encoder', 'but_decoder', 'lora']

@dataclass(frozen=True)
class FinetuneConfig:
    "From a denoiser to a generator of few calls; by default D2O, one call at `sigma_max` trained by a GAN loss alone"
    tier:str='tiny'                # whose presets these are (`Tier.name`)
    net:NetConfig=NetConfig()
    data:str='digits'              # 'digits', a set prepared by `gdpt data`, or any other source of images (`gdpt.data.load_images`)
    data_checksum:str=''           # of those images; filled in by the run
    seed:int=0                     # of the discriminator, of random initial weights and of every random number in training
    images:int=50_000              # training length: real images shown
    init:Literal['pretrained','random']='pretrained' # starting weights of the generator
    freeze:Freeze=0                # what is frozen in the generator: 0 nothing (D2O), 1 (D2O-F), 2, 3 more roles; all but a part; 'lora': all, adapters learn
    weights_checksum:str=''        # of the pre-trained weights that are used; filled in by the run
    teacher_checksum:str=''        # of the teacher's weights, where it is another one than the pre-trained denoiser; filled in by the run
    images_before:int=0            # images that earlier stages have seen, counted in its rows
    losses:tuple[str,...]=('gan.GAN',) # what is minimised: classes under `gdpt.objectives`, added up
    gan_weight:float=1.            # weight of the GAN loss beside others
    adaptive_weight:bool=False     # ... times the ratio of the two gradients at the last layer (VQGAN)
    positives:Literal['data','teacher']='data' # what the discriminator takes for real: the images, or as many samples of the teacher
    distance:Literal['features','pseudo_huber','lpips']='features' # between images, in distillation
    levels:int=18                  # noise levels of the grid that distillation works on
    solver_steps:int=3             # CTM: the teacher goes 1 to this many levels
    recompute:bool=False           # several calls: compute activations again instead of keeping them
    sigma_data:float=0.            # standard deviation of the images in [-1,1]; 0: measured on `data`
    sigma_max:float=80.            # noise level of the one call
    discriminator:Literal['scratch','encoder','random','classifier','projected']='scratch' # a small network, or heads on frozen features: of the pre-trained encoder, a random one, the first judge, ImageNet networks
    disc_channels:int=48           # width of the discriminator or of its heads; the projected one has its own
    backbones:tuple[str,...]=('vgg16_bn','tf_efficientnet_lite0') # ImageNet networks of a projected discriminator, by timm's names
    backbones_checksum:str=''      # of their weights; filled in by the run
    disc_resolution:int=224        # to which it enlarges images, pixels
    disc_precision:Literal['fp32','bf16']='fp32' # of those networks
    augment:Literal['none','diffaugment','ada']='none' # of what the discriminator sees, real and generated
    disc_sigma:float=.2            # noise level told to a frozen encoder (of a discriminator or a distance)
    gan_loss:Literal['non_saturating','hinge']='non_saturating'
    r1_gamma:float=.1              # weight of the R1 penalty
    r1_every:int=16                # steps between two (lazy) penalties
    batch_size:int=64              # real images per step
    shard_size:int=64              # images per forward pass; a batch is a sum over its shards
    lr:float=2e-4                  # Adam's learning rate, generator
    lr_disc:float=2e-4             # Adam's learning rate, discriminator
    betas:tuple[float,float]=(0.,.99) # Adam's, both players
    ema_halflife_kimg:float=500.   # half-life of the generator's weight average, thousands of images; as released, it never binds: the ramp does
    ema_rampup:float=.05           # ... and at most this fraction of the images seen so far
    snapshots:tuple[int,...]=()    # image counts at which the averaged weights are kept, beside the last
    sample_steps:int=1             # calls of the generator, in training and in sampling
    threads:int=1                  # CPU threads; part of the config because sums come out differently in other numbers of them
    precision:Literal['fp32','tf32','bf16']='fp32' # of products and convolutions in training; samples are drawn in fp32
    compile:bool=False             # torch.compile for the generator
    sampler:ClassVar[str]='euler'  # `gdpt.sampling.SAMPLERS`


# %% [markdown]
# The third kind was never a run of ours: a denoiser or generator that others trained, converted (`gdpt convert`). It is sampled, judged and fine-tuned like a run.

# %%
#| export
@dataclass(frozen=True)
class PublishedConfig:
    "Published weights in our format (`gdpt.checkpoints.convert`)"
    tier:str='paper'               # by whose protocol it is judged (`Tier.name`)
    net:NetConfig=NetConfig()
    source:str=''                  # name of the file that it was converted from
    source_sha256:str=''           # of that file
    precond:Literal['edm','consistency','vp','ve','iddpm']='edm' # how the network is preconditioned (`gdpt.denoiser.PRECONDS`)
    sigma_data:float=.5            # standard deviation of the images that its preconditioning assumes
    data:str=''                    # images to compare it with (`gdpt.data`), and whose labels it is given
    images:int=0                   # training images that it has seen, where that is known
    sampler:Literal['heun','euler']='heun' # `gdpt.sampling.SAMPLERS`: 'euler' for a generator of few calls
    sample_steps:int=18            # noise levels of the sampler, or calls of the generator
    sigma_max:float=80.            # noise level at which sampling starts
    threads:int=1                  # CPU threads; part of the config because sums come out differently in other numbers of them
    seed:ClassVar[int]=0           # whatever others drew
    ema_halflife_kimg:ClassVar[float]=500. # what is published is an average


# %%
test_eq(PretrainConfig(seed=1), PretrainConfig(seed=1))
assert replace(FinetuneConfig(), freeze=1) != FinetuneConfig()
test_fail(lambda: setattr(FinetuneConfig(), 'lr', 1.), contains='cannot assign')  # frozen: a config never changes under a run

# %% [markdown]
# A config becomes plain JSON in `config.json`, and comes back equal. `config_id` names run folders.

# %%
#| export
KINDS = {'pretrain':PretrainConfig, 'finetune':FinetuneConfig, 'published':PublishedConfig}

def config_to_dict(
    config,   # a `PretrainConfig` or `FinetuneConfig`
)->dict:      # plain data, with its `kind`
    "What goes into `config.json`"
    kind = next(k for k,v in KINDS.items() if isinstance(config, v))
    return json.loads(json.dumps({'kind':kind, **asdict(config)}))


# %%
#| export
def config_from_dict(
    d:dict,   # what `config_to_dict` returned
):            # the config it came from
    "The inverse of `config_to_dict`; refuses fields it does not know"
    d = dict(d)
    kind = d.pop('kind', None)
    if kind not in KINDS: raise ValueError(f"config of kind {kind!r}: expected one of {', '.join(KINDS)}")
    unknown = set(d) - {f.name for f in fields(KINDS[kind])}
    if unknown: raise ValueError(f"config has unknown fields {sorted(unknown)}: was it written by another version of gdpt?")
    tuples = lambda o: {k:tuple(v) if isinstance(v, list) else v for k,v in o.items()}
    return KINDS[kind](**{**tuples(d), 'net':NetConfig(**tuples(d['net']))})


# %%
#| export
def config_id(
    config,   # a `PretrainConfig` or `FinetuneConfig`
)->str:       # ten hexadecimal digits
    "A name for a config: equal configs, equal names"
    return hashlib.sha256(json.dumps(said(config), sort_keys=True).encode()).hexdigest()[:10]

def said(
    config,   # any dataclass of this room
)->dict:      # plain data
    "What a config says beyond the defaults: a field that is added later, at a default that keeps the numbers, renames no run"
    values = {f.name:getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
    return json.loads(json.dumps({'kind':type(config).__name__, **{k:said(v) if isinstance(v, NetConfig) else v for k,v in values.items()}}))


# %%
c = FinetuneConfig(freeze=1, snapshots=(5_000, 10_000))
test_eq(config_from_dict(json.loads(json.dumps(config_to_dict(c)))), c)
assert config_id(c) == config_id(replace(c)) != config_id(replace(c, freeze=2))
test_eq(said(c), {'kind':'FinetuneConfig', 'freeze':1, 'snapshots':[5_000,10_000]})
test_eq(said(replace(c, net=NetConfig(label_dim=3)))['net'], {'kind':'NetConfig', 'label_dim':3})
test_fail(lambda: config_from_dict({'kind':'distill'}), contains='expected one of')
test_fail(lambda: config_from_dict({**config_to_dict(c), 'momentum':.9}), contains="['momentum']")


# %%
#| export
def read_config(
    folder,   # a run folder
):            # its `PretrainConfig` or `FinetuneConfig`
    "The config of a run"
    path = Path(folder)/'config.json'
    if not Path(folder).is_dir(): raise FileNotFoundError(f'{folder}: no such run folder')
    if not path.exists(): raise FileNotFoundError(f'{folder} is not a run folder: it has no config.json')
    try: return config_from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, KeyError) as e: raise ValueError(f'{path} cannot be read ({type(e).__name__}: {e}): put back a whole copy') from None


# %%
with tempfile.TemporaryDirectory() as tmp:
    path = Path(tmp)/'config.json'
    test_fail(lambda: read_config(tmp), contains='has no config.json')
    path.write_text(json.dumps(config_to_dict(c)))
    test_eq(read_config(tmp), c)
    for damaged in '{"kind":"pretrain"}', '{"kind":', '[]':
        path.write_text(damaged)
        test_fail(lambda: read_config(tmp), contains='config.json cannot be read')
test_fail(lambda: read_config(tmp), contains='no such run folder')


# %% [markdown]
# ## The judges
#
# A judge is a feature space in which images are compared. Where no public feature network can be had, it is a classifier of this project,
# trained on the tier's own labelled images; two of them, unrelated in seed and architecture, so that no single one is believed.

# %%
#| export
@dataclass(frozen=True)
class JudgeConfig:
    "A small classifier whose features judge samples (`gdpt.judges`)"
    name:str='conv'                # names its weights and its rows
    arch:Literal['conv','residual']='conv'
    width:int=32                   # channels of the first layer
    features:int=64                # size of the feature vector
    data:str='digits'              # labelled images to train on
    seed:int=100                   # of weights, split and batches
    epochs:int=40                  # passes over the training part
    batch_size:int=64
    lr:float=2e-3                  # AdamW, one-cycle
    noise:float=.4                 # noise on the training images, standard deviation up to this, image units
    test_fraction:float=.2         # held out to measure its accuracy
    threads:int=1                  # CPU threads; part of the config because sums come out differently in other numbers of them


# %% [markdown]
# ## The presets
#
# One row per experiment, each the short difference from a default. Three tables, all named by the *arm* of the study `d2o` that they become:
# denoisers to pre-train, samplers that draw from a denoiser as it is, and fine-tunings.

# %%
#| export
@dataclass(frozen=True)
class Tier:
    "One budget: presets for every kind of run, and how they are judged"
    name:str
    denoisers:dict                         # name -> `PretrainConfig`, or `PublishedConfig` of weights that others pre-trained
    samplers:dict[str,tuple[str,int]]      # arm -> denoiser's name, noise levels of the sampler
    arms:dict[str,FinetuneConfig]          # arm -> fine-tuning
    judges:tuple[JudgeConfig,...]          # the first gives `fd`, KID, precision and recall, the second `fd_alt`
    starts:dict[str,str]                   # arm -> denoiser it starts from, where that is not the first
    teachers:dict[str,str]                 # arm -> arm whose generator of the same seed it starts from and learns from
    seeds:tuple[int,...]=(0,1,2)           # fine-tuning seeds; of latents, where nothing is fine-tuned
    more_seeds:tuple[int,...]=(0,1,2,3)    # of the arms that are compared with each other across seeds
    spaces:tuple[str,...]=()               # public feature spaces that judge instead of `judges` (`gdpt.protocols.SPACES`)
    eval_samples:int=5_000                 # samples per evaluation
    eval_blocks:int=1                      # evaluations, each on other latents; their mean and minimum are kept
    floor_repeats:int=8                    # halvings and bootstraps behind a floor
    results:str='RESULTS.md'               # where the tables of this tier are written, from the project's root
    claims:str=''                          # what numbers of this tier may be used for

    @property
    def pretrain(self)->PretrainConfig|PublishedConfig:
        "The pre-training of the headline"
        return next(iter(self.denoisers.values()))

    def arm(self, init:str, freeze)->FinetuneConfig:
        "The preset for these starting weights and this freezing (all that freeze something share level 1's learning rate)"
        return replace(next(a for a in self.arms.values() if (a.init, a.freeze) == (init, min(freeze != 0, 1))), freeze=freeze)

    def denoiser_for(self, arm:str)->str:
        "Name of the denoiser that an arm starts from"
        return self.starts.get(arm, next(iter(self.denoisers)))


# %% [markdown]
# A tier's tables follow from one pre-training and one fine-tuning, scaled. The headline first: the method, its frozen form, and the two controls from random
# weights, everything trained, and the same roles frozen *at random values*.

# %%
#| export
def scaled(
    config,            # a `PretrainConfig` or `FinetuneConfig`
    part:float,        # of its images
    **changes,         # other fields
):                     # the same kind
    "A budget cut down, with those snapshots that it still reaches"
    images = round(config.images*part)
    more = dict(warmup_images=min(config.warmup_images, images//10)) if isinstance(config, PretrainConfig) else {}
    return replace(config, images=images, snapshots=tuple(n for n in config.snapshots if n < images) + ((images,) if config.snapshots else ()), **more, **changes)

def widened(config, **net):
    "The same config with changes to its network"
    return replace(config, net=replace(config.net, **net))

def often(config:FinetuneConfig)->FinetuneConfig:
    "With one more snapshot, at 7/10 of the budget: models are compared where they are equally far from the data"
    return replace(config, snapshots=tuple(sorted({*config.snapshots, config.images*7//10})))

def headline_arms(d2o:FinetuneConfig, lr_frozen:float, lr_random:float)->dict:
    "D2O, D2O-F and what they are held against"
    frozen = replace(d2o, freeze=1, lr=lr_frozen)
    return {'d2o':often(d2o), 'd2o_f':frozen, 'from_random':replace(d2o, init='random', lr=lr_random, lr_disc=lr_random), 'random_frozen':replace(frozen, init='random')}


# %%
test_eq(scaled(FinetuneConfig(snapshots=(5_000,25_000,50_000)), .5).snapshots, (5_000,25_000))
test_eq(scaled(PretrainConfig(), 1/16).images, 25_000)
test_eq(scaled(PretrainConfig(), 1/16).warmup_images, 2_500)


# %% [markdown]
# Each of the studies has its own table; most halve the budget.
#
# - *Local minima*: the same GAN loss for generators of 2 and 4 calls (8 as an option), and for networks of half and a quarter of the channels.
# - *Distillation*: progressive distillation in four stages, the last with half of the budget, each stage learning from the one before; consistency distillation, consistency
#   trajectories and recursive consistency on one grid; each alone and with the GAN loss added (in PD to the last stage). The control `d2o_teacher` is D2O that never
#   sees an image, only samples of the teacher. `pd_boot` is PD as released, in one stage.
# - *Pre-training*: D2O from denoisers that had a sixteenth and a quarter of it.
# - *Freezing*: more and other parts frozen. What trains less than a fifth of the weights has the learning rate of D2O-F.
# - *Discriminators*: what it looks at, its loss, its penalty, and the class-conditional twins.

# %%
#| export
def step_arms(d2o:FinetuneConfig, steps:tuple, widths:dict)->dict:
    "Generators of several calls, and of narrower networks (suffix -> channels)"
    return {**{f'd2o_{n}step':replace(often(d2o), sample_steps=n) for n in steps},
            **{f'd2o{k}':widened(often(d2o), model_channels=c) for k,c in widths.items()}}

def distillation_arms(d2o:FinetuneConfig)->dict:
    "PD, CD, CTM and RCD, alone and with the GAN loss"
    whole = replace(d2o, images=d2o.images//2)
    mark = lambda c: replace(c, snapshots=(c.images//2, c.images))
    alone = lambda name,**more: mark(replace(whole, losses=(f'distillation.{name}',), **more))
    stage = lambda steps,before,part: replace(alone('PD', sample_steps=steps, images_before=round(whole.images*before)), images=round(whole.images*part), snapshots=())
    arms = {'pd_8':stage(8, 0, 1/8), 'pd_4':stage(4, 1/8, 1/8), 'pd_2':stage(2, 1/4, 1/4), 'pd':mark(stage(1, 1/2, 1/2)), 'cd':alone('CD'),
            'ctm':widened(alone('CTM'), target_level=True), 'rcd':widened(alone('RCD'), target_level=True),
            'pd_boot':widened(alone('BootPD', levels=64), target_level=True)}
    both = {f'{k}_gan':replace(arms[k], losses=(*arms[k].losses, 'gan.GAN')) for k in ('pd','cd','ctm','rcd')}
    return {**arms, **both, 'd2o_teacher':scaled(d2o, .5, positives='teacher')}

def freezing_arms(d2o:FinetuneConfig, lr_frozen:float)->dict:
    "Other parts frozen"
    half = scaled(d2o, .5)
    little = {'d2o_f2':2, 'd2o_f3':3, 'norm_affine':'but_norm_affine', 'lora':'lora'}
    return {**{k:replace(half, freeze=f, lr=lr_frozen) for k,f in little.items()}, 'encoder_only':replace(half, freeze='but_encoder'), 'decoder_only':replace(half, freeze='but_decoder')}

def discriminator_arms(d2o:FinetuneConfig, lr_frozen:float, classes:int)->dict:
    "Other discriminators, and the class-conditional pair"
    half = scaled(d2o, .5)
    looks = {f'd2o_{k}':replace(half, discriminator=d) for k,d in (('encoder','encoder'), ('random_features','random'), ('classifier','classifier'))}
    penalties = {'d2o_r1_low':replace(half, r1_gamma=d2o.r1_gamma/10), 'd2o_r1_high':replace(half, r1_gamma=d2o.r1_gamma*10)}
    cond = widened(half, label_dim=classes)
    return {**looks, 'd2o_hinge':replace(half, gan_loss='hinge'), **penalties, 'd2o_cond':cond, 'd2o_f_cond':replace(cond, freeze=1, lr=lr_frozen)}


# %%
#| export
def make_tier(
    name:str,
    pretrain:PretrainConfig,    # unconditional pre-training
    finetune:FinetuneConfig,    # D2O
    classes:int,                # of the class-conditional runs
    lr_frozen:float,            # generator's learning rate when most of it is frozen
    lr_random:float,            # both players' learning rate from random weights
    steps:tuple=(2,4,8),        # calls of the generators of several calls
    **rest,                     # the other fields of `Tier`
)->Tier:
    "The tables of a tier"
    pretrain,d2o = replace(pretrain, tier=name),replace(finetune, tier=name)
    widths = {'_half':pretrain.net.model_channels//2, '_quarter':pretrain.net.model_channels//4}
    denoisers = {'denoiser':pretrain, **{f'denoiser{k}':widened(pretrain, model_channels=c) for k,c in widths.items()}, 'denoiser_cond':widened(pretrain, label_dim=classes),
                 'denoiser_16th':scaled(pretrain, 1/16), 'denoiser_4th':scaled(pretrain, 1/4)}
    arms = {**headline_arms(d2o, lr_frozen, lr_random), **step_arms(d2o, steps, widths), **distillation_arms(d2o), 'd2o_pre16':often(d2o), 'd2o_pre4':often(d2o),
            **freezing_arms(d2o, lr_frozen), **discriminator_arms(d2o, lr_frozen, classes)}
    steps = pretrain.sample_steps
    many = {'teacher':'denoiser', 'teacher_half':'denoiser_half', 'teacher_quarter':'denoiser_quarter', 'teacher_cond':'denoiser_cond'}
    return Tier(name, denoisers=denoisers, arms=arms, samplers={**{k:(d,steps) for k,d in many.items()}, 'untuned':('denoiser',1)},
        starts={'d2o_half':'denoiser_half', 'd2o_quarter':'denoiser_quarter', 'd2o_cond':'denoiser_cond', 'd2o_f_cond':'denoiser_cond', 'd2o_pre16':'denoiser_16th', 'd2o_pre4':'denoiser_4th'},
        teachers={'pd_4':'pd_8', 'pd_2':'pd_4', 'pd':'pd_2', 'pd_gan':'pd_2'}, **rest)


# %%
#| export
_tiny = make_tier('tiny', PretrainConfig(), FinetuneConfig(snapshots=(5_000, 10_000, 25_000, 50_000)), classes=10, lr_frozen=1e-3, lr_random=5e-4,
    judges=(JudgeConfig(), JudgeConfig('residual', 'residual', width=24, features=96, noise=0., seed=200)),
    claims="scikit-learn's digits at 8x8: claims are decided at this scale only")

# %% [markdown]
# `small` is CIFAR-10 on one GPU. Its images come from `gdpt data cifar10`.

# %%
#| export
_net32 = NetConfig(resolution=32, channels=3, model_channels=64, channel_mult=(2,2,2), num_blocks=2, attn_resolutions=(16,), channel_mult_emb=4)
_cifar = dict(data='cifar10', ema_halflife_kimg=500.)
_small = make_tier('small', PretrainConfig(net=replace(_net32, dropout=.1), **_cifar, images=20_000_000, batch_size=512, shard_size=512, warmup_images=1_000_000),
    FinetuneConfig(net=_net32, **_cifar, images=2_000_000, batch_size=256, disc_channels=128, snapshots=(200_000, 500_000, 1_000_000, 2_000_000)),
    classes=10, lr_frozen=1e-3, lr_random=5e-4, eval_samples=50_000, results='data/small/RESULTS.md', claims='CIFAR-10 at 32x32 on one GPU',
    judges=(JudgeConfig(width=64, features=128, data=_cifar['data']), JudgeConfig('residual', 'residual', width=48, features=192, noise=0., seed=200, data=_cifar['data'])))


# %% [markdown]
# The paper's own recipes (PAPER.md section 3) start from weights that others have published, and are judged by the spaces of the literature. There is one tier for each set of images:
# `paper` is CIFAR-10, unconditional and class-conditional, and the others are `paper-ffhq64`, `paper-afhqv2-64` and `paper-imagenet64`. Their images come from `gdpt data`, the denoisers lie under
# `data/published` as EDM names them, and the discriminator's networks under `data/backbones`.
#
# The weight of R1 is not the released 1e-4: there the adversarial loss sums over the images of a GPU and over the logits of four heads, here it is a mean over images and a sum over eight
# heads, and the weight that corresponds is 4/64 of it (PAPER.md section 3). Shards of 64 images stand for the four GPUs of the release: the batch norms of the heads see one shard. Of the
# precisions, the released code runs the generator in bfloat16; here everything that learns does, and the feature networks keep float32.

# %%
#| export
def published(tier:str, file:str, net:NetConfig, data:str, images:int, levels:int)->PublishedConfig:
    "A denoiser of EDM's release (Karras et al. 2022)"
    return PublishedConfig(tier, net, file, data=data, images=images, sample_steps=levels)

def paper_tier(
    name:str,
    denoisers:dict,           # 'denoiser', and 'denoiser_cond' where there are two
    backbones:tuple,          # of the discriminator
    images:int,               # training length
    **recipe,                 # what differs from the defaults of `FinetuneConfig`
)->Tier:
    "One of the paper's recipes"
    r1,marks = 1e-4*4/64,tuple(images*k//50 for k in (1,2,5,10,20,35,50))
    def tuned(d): return FinetuneConfig(name, replace(d.net, dropout=0.), d.data, images=images, snapshots=marks, sigma_data=.5, discriminator='projected', backbones=backbones, r1_gamma=r1,
                                        **{**dict(batch_size=256, shard_size=64, ema_halflife_kimg=500., precision='bf16'), **recipe})
    first,cond = denoisers['denoiser'],denoisers.get('denoiser_cond')
    arms = headline_arms(tuned(first), recipe['lr'], recipe['lr'])
    if cond: arms |= {'d2o_cond':tuned(cond), 'd2o_f_cond':replace(tuned(cond), freeze=1)}
    samplers = {'teacher':('denoiser',first.sample_steps), **({'teacher_cond':('denoiser_cond',cond.sample_steps)} if cond else {}), 'untuned':('denoiser',1)}
    return Tier(name, denoisers=denoisers, arms=arms, samplers=samplers, starts={k:'denoiser_cond' for k in arms if k.endswith('_cond')}, teachers={}, judges=(), spaces=('inception','clip','dinov2'),
        eval_samples=50_000, eval_blocks=3, floor_repeats=2, results=f'data/{name}/RESULTS.md', claims=f'{first.data} at {first.net.resolution}x{first.net.resolution}, from published weights')


# %%
#| export
_vgg,_deit = ('vgg16_bn','tf_efficientnet_lite0'),('deit_base_distilled_patch16_224','tf_efficientnet_lite0')
_ncsnpp = NetConfig('ncsnpp', 32, 3, 128, (2,2,2), 4, (16,), 4, augment_dim=9)
_ncsnpp64 = replace(_ncsnpp, resolution=64, channel_mult=(1,2,2,2))
_adm = NetConfig('adm', 64, 3, 192, (1,2,3,4), 3, (32,16,8), 4, label_dim=1000)
_faces = dict(images=10_000_000, lr=2e-5, lr_disc=4e-5)

PAPER = {t.name:t for t in (
    paper_tier('paper', {'denoiser':     published('paper', 'edm-cifar10-32x32-uncond-ve.pkl', replace(_ncsnpp, dropout=.13), 'cifar10', 200_000_000, 18),
                         'denoiser_cond':published('paper', 'edm-cifar10-32x32-cond-ve.pkl', replace(_ncsnpp, dropout=.13, label_dim=10), 'cifar10', 200_000_000, 18)},
               _vgg, 5_000_000, lr=1e-4, lr_disc=1e-4),
    paper_tier('paper-ffhq64', {'denoiser':published('paper-ffhq64', 'edm-ffhq-64x64-uncond-ve.pkl', replace(_ncsnpp64, dropout=.05), 'ffhq64', 200_000_000, 40)}, _deit, **_faces),
    paper_tier('paper-afhqv2-64', {'denoiser':published('paper-afhqv2-64', 'edm-afhqv2-64x64-uncond-ve.pkl', replace(_ncsnpp64, dropout=.25), 'afhqv2-64', 200_000_000, 40)}, _deit, **_faces),
    paper_tier('paper-imagenet64', {'denoiser':published('paper-imagenet64', 'edm-imagenet-64x64-cond-adm.pkl', replace(_adm, dropout=.1), 'imagenet64', 2_500_000_000, 40)}, _deit, 10_000_000,
               lr=8e-6, lr_disc=4e-5, batch_size=512, ema_halflife_kimg=50_000.))}

# %%
for t in PAPER.values():
    a = t.arms['d2o_f']
    print(f"{t.name:17s} {a.net.arch:7s} {a.images/1e6:3.0f} M images, batch {a.batch_size}, lr {a.lr:.0e} and {a.lr_disc:.0e}, {' + '.join(a.backbones)}, from {t.pretrain.source}")
test_eq([t.arms['d2o'].lr for t in PAPER.values()], [1e-4, 2e-5, 2e-5, 8e-6])
test_close(PAPER['paper'].arms['d2o'].r1_gamma, 6.25e-6)


# %% [markdown]
# ## Smoke
#
# Any tier can be shrunk until it runs in seconds. The numbers then mean nothing, so a shrunken tier has another name and with it other folders.

# %%
#| export
def shrink(tier:Tier)->Tier:
    "The same tier with a network, budgets and samples too small to mean anything: does every line run?"
    name = 'smoke' if tier.name == 'tiny' else f'{tier.name}-smoke'
    short = dict(tier=name, images=128, batch_size=32, shard_size=16)
    little = lambda c,**more: widened(replace(c, **more), model_channels=min(c.net.model_channels//2, 64 if c.net.arch == 'adm' else 16), num_blocks=1)     # ADM's attention has heads of 64 channels
    looks = lambda a: dict(backbones=('test_efficientnet','test_vit')[:len(a.backbones)], disc_resolution=min(a.disc_resolution, 160))
    tuned = lambda a: little(a, **short, **looks(a), snapshots=(64,), images_before=128 if a.images_before else 0, levels=min(a.levels, 8), precision='fp32')
    before = lambda d: little(d, tier=name, sample_steps=3) if isinstance(d, PublishedConfig) else little(d, **short, warmup_images=64, sample_steps=3)
    return replace(tier, name=name, eval_samples=256, eval_blocks=min(tier.eval_blocks, 2), spaces=('cells','contrasts')[:len(tier.spaces)], floor_repeats=2, seeds=tier.seeds[:2], more_seeds=tier.more_seeds[:2], results=f'data/{name}/RESULTS.md',
        claims='none: a smoke run', denoisers={k:before(d) for k,d in tier.denoisers.items()},
        samplers={k:(d,min(n, 3)) for k,(d,n) in tier.samplers.items()},
        arms={k:tuned(a) for k,a in tier.arms.items()}, judges=tuple(replace(j, epochs=1, width=8) for j in tier.judges))


# %%
#| export
TIERS = {t.name:t for t in (shrink(_tiny), _tiny, _small, *PAPER.values(), shrink(_small), *map(shrink, PAPER.values()))}

def get_tier(
    name:str='tiny',   # one of `TIERS`; the environment variable SMOKE=1 shrinks any of them
)->Tier:
    "Look a tier up by name"
    if name not in TIERS: raise ValueError(f"unknown tier {name!r}: expected one of {', '.join(TIERS)}")
    small = os.environ.get('SMOKE') == '1' and not name.endswith('smoke')
    return shrink(TIERS[name]) if small else TIERS[name]


# %%
tiny = get_tier('tiny')
for name,arm in tiny.arms.items():
    print(f"{name:20s} {arm.images:6,} images  {', '.join(arm.losses):28s} calls {arm.sample_steps}  freeze {arm.freeze!s:16s} lr {arm.lr:.0e}  {arm.discriminator:10s} from {tiny.denoiser_for(name)}")

# %%
test_eq(tiny.arm('pretrained', 1), tiny.arms['d2o_f'])
test_eq(tiny.arm('pretrained', 3), replace(tiny.arms['d2o_f'], freeze=3))
test_eq(tiny.denoiser_for('d2o_cond'), 'denoiser_cond')
test_eq(sum(tiny.arms[k].images for k in ('pd_8','pd_4','pd_2','pd')), tiny.arms['cd'].images)       # equal budgets
for tier in TIERS.values():
    for k,a in tier.arms.items(): test_eq(replace(tier.denoisers[tier.denoiser_for(k)].net, target_level=a.net.target_level, dropout=a.net.dropout), a.net)
    assert {*tier.teachers, *tier.teachers.values(), *tier.starts} <= set(tier.arms)
for tier in TIERS.values():                       # every run knows whose preset it is, and every sampler has its denoiser
    assert all(c.tier == tier.name for c in (*tier.denoisers.values(), *tier.arms.values()))
    assert {d for d,_ in tier.samplers.values()} <= set(tier.denoisers)
assert tiny.judges[0].seed != tiny.judges[1].seed and tiny.judges[0].arch != tiny.judges[1].arch
test_fail(lambda: get_tier('huge'), contains="expected one of smoke, tiny, small")

# %% [markdown]
# Under `SMOKE=1` every tier is its shrunken self, under that one's name, so that nothing it leaves is mistaken for a result.

# %%
os.environ['SMOKE'] = '1'
test_eq([get_tier(n) for n in ('tiny','smoke','small')], [TIERS[n] for n in ('smoke','smoke','small-smoke')])
del os.environ['SMOKE']
test_eq(get_tier('tiny').name, 'tiny')
