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
# # spectral
#
# > Power over spatial frequency: of images, of what a denoiser restores at each noise level, and of the maps inside the network

# %%
#| default_exp spectral

# %%
#| export
import math
from contextlib import contextmanager
import torch
from gdpt.unet import UNetBlock

# %%
#| hide
import matplotlib.pyplot as plt
from fastcore.test import *
from gdpt.data import keyed_generator, load_images, to_float
from gdpt.denoiser import Denoiser
from gdpt.plots import use_style
from gdpt.sampling import latents
from gdpt.tiers import NetConfig
from gdpt.unet import make_net
assert_close = torch.testing.assert_close
torch.set_num_threads(1)
use_style()
normal = lambda shape,*key: torch.randn(shape, generator=keyed_generator(*key))


# %% [markdown]
# Any image is a sum of waves. How much of it is in slow waves, which make outlines, and how much in fast ones, which make detail, is its power spectrum.
# The paper reads the pre-trained network and the one-step generator through it (PAPER.md, section 7). Here are the measures; which networks they are
# applied to is the affair of the study `spectrum`.
#
# ## Power
#
# A map of $n\times n$ pixels has $n^2$ Fourier coefficients, each a wave with a frequency along either axis. Its radius is the number of cycles per pixel,
# whatever the direction: 0 is the mean of the map, 0.5 the fastest wave along an axis (the Nyquist frequency), and the corners reach 0.707.

# %%
#| export
def frequency(
    n:int,          # pixels along an edge
)->torch.Tensor:    # (n,n), float64, in the order of `torch.fft.fft2`
    "Radial frequency of each Fourier coefficient, in cycles per pixel of the map"
    f = torch.fft.fftfreq(n, dtype=torch.float64)
    return (f[:,None]**2 + f**2).sqrt()


# %%
test_close([frequency(8)[i].item() for i in ((0,1), (4,0), (4,4))], [1/8, 1/2, 1/2**.5])
test_eq(frequency(4)[0,1].item(), 1/4)        # half the edge: the slowest wave has twice the cycles per pixel


# %% [markdown]
# Power is the squared amplitude of a coefficient, scaled so that white noise of standard deviation $\sigma$ has power $\sigma^2$ at every frequency: a
# spectrum can then be held against a noise level directly. With this scale Parseval's theorem says that the *mean* power over all coefficients is the mean
# square over all pixels.

# %%
#| export
def power(
    x:torch.Tensor,    # images or feature maps, floating point, (n,c,h,w) with h = w
)->torch.Tensor:       # (n,h,w), float64, squared units of `x`, mean over channels
    "Squared amplitude of each Fourier coefficient; for white noise its variance, at every frequency"
    if x.ndim != 4 or x.shape[-1] != x.shape[-2] or not x.is_floating_point():
        raise ValueError(f'expected square floating-point maps (n,c,h,w), got {tuple(x.shape)} of {x.dtype}')
    return torch.fft.fft2(x.float()).abs().square().mean(1).double() / x[0,0].numel()


# %%
noise = .7*normal((2000,3,8,8), 'white')
p = power(noise)
assert_close(p.mean(), noise.double().square().mean(), rtol=1e-5, atol=0)                      # Parseval
assert_close(p.mean((1,2)), noise.double().square().mean((1,2,3)), rtol=1e-5, atol=0)          # ... of each image
assert_close(p.mean(0), torch.full((8,8), .49, dtype=torch.float64), rtol=.1, atol=0)          # flat, at sigma squared
digits = to_float(load_images('digits').images)
assert_close(power(digits).mean(), digits.double().square().mean(), rtol=1e-5, atol=0)
assert_close(power(torch.ones(1,1,8,8))[0], 64.*(frequency(8) == 0).double(), rtol=0, atol=1e-9)        # a constant is all at 0
test_fail(lambda: power(torch.zeros(2,1,8,4)), contains='expected square floating-point maps (n,c,h,w), got (2, 1, 8, 4)')
test_fail(lambda: power(torch.zeros(2,1,8,8, dtype=torch.uint8)), contains='of torch.uint8')


# %% [markdown]
# ## Rings and bands
#
# Averaged over directions, a spectrum is a curve. Rings are one slowest wave wide, centred on its multiples; those beyond Nyquist hold the corners.

# %%
#| export
def radial_power(
    p:torch.Tensor,    # power (...,h,w)
)->tuple:              # mean frequency of each ring, cycles per pixel; mean power in it, over leading dimensions too; coefficients in it
    "Power averaged over directions, in rings of width 1/h"
    n = p.shape[-1]
    ring = (frequency(n)*n).round().long().flatten()
    count = ring.bincount()
    mean = lambda v: ring.bincount(v.flatten())/count
    return mean(frequency(n)), mean(p.reshape(-1, n, n).mean(0)), count


# %%
freq,ring,count = radial_power(p)
assert_close(ring, torch.full_like(ring, .49), rtol=.05, atol=0)
assert_close((ring*count).sum()/64, noise.double().square().mean(), rtol=1e-5, atol=0)         # Parseval over rings
test_eq(count.sum().item(), 64)
i = torch.arange(8)
wave = (2*math.pi*(3*i)/8).cos().expand(1,1,8,8)                                               # three cycles in eight pixels
test_close((radial_power(power(wave))[1]*count).tolist(), [0,0,0,32,0,0,0], eps=1e-4)                     # mean square 1/2 times 64, all in its ring
assert_close(radial_power(power(wave.mT))[1], radial_power(power(wave))[1])            # and in any direction


# %% [markdown]
# A field whose power falls as the square of frequency, as that of natural images does, is made by filtering noise. Its slope comes back to within 0.05.

# %%
def field(n, slope, shape, *key):
    "Gaussian noise whose power falls with frequency to the `slope`"
    gain = frequency(n).clamp(min=1/n)**(slope/2)
    return torch.fft.ifft2(torch.fft.fft2(normal((*shape,n,n), *key))*gain).real.float()

fig,ax = plt.subplots()
for slope in 0, -1, -2, -3:
    freq,ring,_ = radial_power(power(field(64, slope, (64,1), 'field')))
    inner = (freq > 0) & (freq < .5)
    fit = torch.linalg.lstsq(torch.stack([freq[inner].log(), torch.ones(inner.sum(), dtype=freq.dtype)], 1), ring[inner].log()).solution[0].item()
    ax.loglog(freq[1:], ring[1:], label=f'{slope}: {fit:.2f}')
    test_close(fit, slope, eps=.05)
ax.set(xlabel='frequency (cycles per pixel)', ylabel='power'); ax.legend(title='slope: recovered');

# %% [markdown]
# Where a curve is too much, four bands do: the mean of the map (its brightness), and the thirds of the axis from there to Nyquist, the corners counted with the
# fastest. Frequencies are in pixels of the map itself, so each map has its own Nyquist; a map of 4x4 pixels has no wave slow enough for the low band.

# %%
#| export
BANDS = {'brightness':0., 'low':1e-9, 'mid':1/6, 'high':1/3}      # lowest frequency of each band, cycles per pixel

def band_energies(
    p:torch.Tensor,    # power (n,h,w)
)->torch.Tensor:       # (n,4), bands in the order of `BANDS`; they add up to the mean square of the map
    "Energy of each map in each band; 0 in a band without frequencies"
    edges = torch.tensor([*BANDS.values()], dtype=torch.float64)
    member = torch.bucketize(frequency(p.shape[-1]), edges, right=True).flatten() - 1
    return torch.zeros(len(p), len(BANDS), dtype=p.dtype).index_add_(1, member, p.flatten(1)) / member.numel()


# %%
assert_close(band_energies(power(noise)).sum(1), noise.double().square().mean((1,2,3)), rtol=1e-5, atol=0)   # Parseval over bands
for k,band in (0,0), (1,1), (2,2), (3,3), (4,3):                              # k cycles in eight pixels: 1/8 is low, 2/8 mid, 3/8 and 4/8 high
    wave = (2*math.pi*k*i/8).cos().expand(1,1,8,8)
    assert_close(band_energies(power(wave))[0].argmax().item(), band)
test_eq((band_energies(torch.ones(1,8,8, dtype=torch.float64))[0]*64).tolist(), [1,4,16,43])   # coefficients in each
test_eq((band_energies(torch.ones(1,4,4, dtype=torch.float64))[0]*16).tolist(), [1,0,4,11])


# %% [markdown]
# ## What a denoiser restores
#
# At noise level sigma the denoiser sees `images + sigma*noise`. Of each band of the clean images it gets some part right. Measured is the error that is left
# in the band, against what would be left if every answer were the mean image: 1 is all restored, 0 nothing, and below 0 the answer is worse than the mean.

# %%
#| export
def restored(
    denoised:torch.Tensor,    # answers (n,c,h,w)
    images:torch.Tensor,      # the clean images behind them (n,c,h,w)
    mean:torch.Tensor,        # mean image of the data (c,h,w)
)->torch.Tensor:              # (4,), bands in the order of `BANDS`
    "Share of the images' deviation from the mean image that the answers get right, by band"
    return 1 - band_energies(power(denoised - images)).sum(0)/band_energies(power(images - mean)).sum(0)


# %% [markdown]
# For Gaussian data the best answer is known. Each coefficient is shrunk by the ratio of its variance $p$ to what is seen, $p/(p+\sigma^2)$ (Wiener), and that
# is also the share restored of it. So a band is half restored where the noise has as much power as the band: for images, whose power falls with frequency,
# the slow waves come back at high noise and detail only at low noise. The same formula with the spectrum of real images is what the *best linear* denoiser
# could do.

# %%
#| export
def linearly_restored(
    p:torch.Tensor,    # variance of each coefficient over the data (h,w): mean power of deviations from the mean image
    sigma:float,       # noise level, image units
)->torch.Tensor:       # (4,)
    "Share of each band that the best linear denoiser restores (Wiener filter)"
    shares = torch.stack([p*p/(p + sigma**2), p])[:,None]
    kept,all_ = band_energies(shares.flatten(0, 1))
    return kept/all_


# %%
x0 = field(8, -2, (4000,1), 'images')
variance = power(x0).mean(0)
for sigma in .3, 1., 3.:
    x = x0 + sigma*normal(x0.shape, 'noise', 'restored')
    answer = torch.fft.ifft2(torch.fft.fft2(x)*variance/(variance + sigma**2)).real.float()
    print(sigma, restored(answer, x0, torch.zeros(1,8,8)).numpy().round(2))
    assert_close(restored(answer, x0, torch.zeros(1,8,8)), linearly_restored(variance, sigma), atol=.03, rtol=0)
assert_close(restored(x0, x0, x0.mean(0)), torch.ones(4, dtype=torch.float64))                                    # all restored
assert_close(restored(x0.mean(0).expand_as(x0), x0, x0.mean(0)), torch.zeros(4, dtype=torch.float64), atol=1e-5, rtol=0)  # nothing


# %%
#| export
def half_level(
    sigmas,    # noise levels, falling, (k,)
    share,     # restored share of a band at each, (k,)
)->float:      # not a number if the share does not pass one half
    "Noise level at which half of a band is restored, linear in the logarithm of sigma"
    for s,t,a,b in zip(sigmas, sigmas[1:], share, share[1:]):
        if a < .5 <= b: return float(s*(t/s)**((.5-a)/(b-a)))
    return math.nan


# %%
sigmas = [80*2**-k for k in range(13)]
flat = torch.full((8,8), .49, dtype=torch.float64)                                                # white data of standard deviation 0.7
test_close(half_level(sigmas, [float(linearly_restored(flat, s)[1]) for s in sigmas]), .7, eps=.02)    # half restored at its own level
levels = [half_level(sigmas, [float(linearly_restored(variance, s)[b]) for s in sigmas]) for b in range(4)]
print('half restored at', dict(zip(BANDS, (round(l, 2) for l in levels))))
assert levels[1] > levels[2] > levels[3]                                                          # slow waves first
assert math.isnan(half_level(sigmas, [0.]*13))


# %% [markdown]
# ## Inside the network
#
# Hooks read the output of every block of a U-Net while it is called. A map is measured at once and forgotten, so that memory holds one map and not all.

# %%
#| export
@contextmanager
def captured(
    denoiser,    # a `Denoiser` around a U-Net (`gdpt.unet`)
    measure,     # function of a map (n,c,h,w)
):               # yields a dictionary: block -> what `measure` returned at the latest call, in the order of the pass
    "Measure the output of each encoder and decoder block whenever the denoiser is called"
    out = {}
    blocks = {f'{part}.{k}':m for part in ('enc','dec') for k,m in getattr(denoiser.net, part).items() if isinstance(m, UNetBlock)}
    hook = lambda name: lambda module,args,output: out.__setitem__(name, measure(output.detach()))
    hooks = [m.register_forward_hook(hook(k)) for k,m in blocks.items()]
    try: yield out
    finally:
        for h in hooks: h.remove()


# %%
torch.manual_seed(0)
net = make_net(NetConfig(model_channels=16))
for p in net.parameters(): torch.nn.init.normal_(p, std=.1)           # a fresh network's blocks are little more than their shortcuts
d = Denoiser(net, .752).eval().requires_grad_(False)
x = digits[:6]
with captured(d, lambda m: tuple(m.shape[1:])) as shapes: y = d(x, 1.)
for k,s in shapes.items(): print(f'{k:16s} {s}')
test_eq([*shapes][:2], ['enc.8x8_block0','enc.4x4_down'])
test_eq([*shapes][-1], 'dec.8x8_block1')
assert_close(d(x, 1.), y, rtol=0, atol=0)                             # looking changes nothing,
assert not any(m._forward_hooks for m in net.modules())               # and leaves nothing behind

# %% [markdown]
# The last block's map is all that the last convolution sees, so a captured map can be checked: it leads to the network's own output.

# %%
with captured(d, lambda m: m) as maps: y = d(x, 2.)
last = torch.nn.functional.silu(net.dec['8x8_aux_norm'](maps['dec.8x8_block1']))
raw = net.dec['8x8_aux_conv'](last)
c_skip,c_out = .752**2/(4+.752**2),2*.752/(4+.752**2)**.5
assert_close(c_skip*x + c_out*raw, y)


# %% [markdown]
# What a block carries is what of its map changes from image to image; what is the same for all images (biases, mostly) is left out.

# %%
#| export
def band_shares(
    maps:torch.Tensor,    # (n,c,h,w)
)->torch.Tensor:          # (4,), bands in the order of `BANDS`, adding up to 1
    "Share of each band in the energy of maps, as deviations from their mean over images"
    energy = band_energies(power(maps - maps.mean(0))).sum(0)
    return energy/energy.sum()


# %%
flat = torch.tensor([1.,4.,16.,43.], dtype=torch.float64)/64
assert_close(band_shares(noise + 5*normal((3,8,8), 'bias')), flat, atol=.01, rtol=0)   # white, whatever is common to all
assert_close(band_shares(7*noise), band_shares(noise))


# %% [markdown]
# ## Alike or not
#
# Two blocks, or one block at two noise levels, are compared by what they make of the *same* images: do images that are close in one are also close in the
# other? Linear CKA (Kornblith et al. 2019) is the correlation of the two tables of inner products between images, 1 if one map is a rotation and scaling of
# the other, 0 if they have nothing to do with each other. A map has more numbers than there are images, and then the usual estimate sees likeness between
# independent maps. The unbiased estimate (Song et al. 2012) does not: inner products of an image with itself are left out and the table is centred
# accordingly (the U-centring of Székely & Rizzo 2014).

# %%
#| export
def centred_gram(
    maps:torch.Tensor,    # (n,...), one per image
)->torch.Tensor:          # (n,n), float64, no diagonal, rows and columns add up to 0
    "Inner products between images, centred for the unbiased CKA"
    n = len(maps)
    if n < 4: raise ValueError(f'CKA needs at least 4 images, got {n}')
    x = maps.flatten(1)
    k = (x@x.T).double().fill_diagonal_(0)
    rows = k.sum(0)/(n-2)
    return (k - rows - rows[:,None] + k.sum()/((n-1)*(n-2))).fill_diagonal_(0)

def cka(
    a:list,           # centred Gram matrices (n,n)
    b:list,           # others, of the same images in the same order
)->torch.Tensor:      # (len(a),len(b)), at most 1
    "Unbiased linear CKA between every pair (Kornblith et al. 2019, Section 3)"
    if len({k.shape for k in (*a, *b)}) != 1: raise ValueError('CKA compares blocks on the same images: these are of different counts')
    unit = lambda grams: torch.nn.functional.normalize(torch.stack(list(grams)).flatten(1))
    return unit(a)@unit(b).T


# %%
maps = normal((64,32,4,4), 'maps')
rotation = torch.linalg.qr(normal((512,512), 'rotation'))[0]
turned = 3*(maps.flatten(1)@rotation) + normal((512,), 'shift')
other = normal((64,1000), 'other')
same,none = cka([centred_gram(maps)], [centred_gram(turned), centred_gram(other)])[0].tolist()
test_close(same, 1, eps=1e-5)                               # rotated, scaled and shifted
test_close(none, 0, eps=.05)                                # independent
k,l = (x.flatten(1)@x.flatten(1).T for x in (maps - maps.mean(0), other - other.mean(0)))
biased = float((k*l).sum()/(k.norm()*l.norm()))
print(f'independent maps: {none:.3f}, and {biased:.2f} by the usual estimate')
assert biased > .5
test_fail(lambda: centred_gram(maps[:3]), contains='at least 4 images, got 3')
test_fail(lambda: cka([centred_gram(maps)], [centred_gram(maps[:9])]), contains='on the same images')


# %% [markdown]
# The centred tables hold the estimator of Song et al. 2012, here written out.

# %%
def hsic(k, l):
    n = len(k)
    return ((k*l).sum() + k.sum()*l.sum()/((n-1)*(n-2)) - 2*(k.sum(0)@l.sum(0))/(n-2)) / (n*(n-3))
gram = lambda x: (x.flatten(1)@x.flatten(1).T).double().fill_diagonal_(0)
part = maps.flatten(1)[:,:50] + 2                          # fifty of the numbers
for x in other, part:
    k,l = gram(maps),gram(x)
    assert_close(cka([centred_gram(maps)], [centred_gram(x)])[0,0], hsic(k, l)/(hsic(k, k)*hsic(l, l)).sqrt(), rtol=1e-4, atol=1e-5)


# %% [markdown]
# ## Which noise level a tuned block does the work of
#
# The sampler calls its network at noise levels from 80 down to nearly 0; a tuned generator calls it once, at 80. Does its pass do, block after block, what
# the sampler's calls did one after the other? For a block of the tuned network, that asks at which noise level the *pre-trained* network's block is most
# like it. Both must look at the same images. The tuned network turns $80 z$ into a sample $G$; the pre-trained one is shown that sample on its way there,
# the state after one Euler step of the generator from 80 to sigma (PAPER.md, section 2),
#
# $$x_\sigma = \sigma z + (1 - \sigma/80)\,G .$$
#
# At 80 that is the generator's own input, near 0 its output.

# %%
#| export
def on_the_way(
    noise:torch.Tensor,      # unit normal (n,c,h,w)
    samples:torch.Tensor,    # what the generator made of it (n,c,h,w)
    sigma:float,             # noise level to stop at
    sigma_max:float,         # noise level the generator is called at
)->torch.Tensor:             # (n,c,h,w)
    "Samples with as much of their own noise as is left at `sigma`"
    return sigma*noise + (1 - sigma/sigma_max)*samples

def best_level(
    sigmas,         # noise levels, geometric, (k,)
    similarity,     # at each, (k,)
)->float:
    "Noise level of the greatest similarity, by a parabola through the three highest points in the logarithm of sigma"
    v = [float(s) for s in similarity]
    i = max(range(len(v)), key=v.__getitem__)
    shift = 0. if i in (0, len(v)-1) else .5*(v[i-1]-v[i+1])/(v[i-1]-2*v[i]+v[i+1])
    return float(sigmas[i]*(sigmas[1]/sigmas[0])**shift)

def walk(
    levels,         # best level of each block, in the order of the pass
)->float:           # 1: falls from each block to the next; 0: no order, or the same for all; -1: rises
    "Rank correlation between a block's place in the pass and how low its best noise level is (Spearman)"
    from scipy.stats import spearmanr
    return float(-spearmanr(range(len(levels)), levels).statistic) if len(set(levels)) > 1 else 0.


# %%
z,G = normal((2,1,8,8), 'z'),digits[:2]
assert_close(on_the_way(z, G, 80., 80.), 80*z)
assert_close(on_the_way(z, G, 0., 80.), G)
test_close(best_level(sigmas, [-math.log(s/3.)**2 for s in sigmas]), 3., eps=1e-6)        # a parabola is found exactly, between the levels
test_eq([best_level(sigmas, v) for v in (range(13), range(13)[::-1])], [sigmas[-1], sigmas[0]])    # and an end is an end
test_eq((walk([9.,5.,1.,.5]), walk([.1,.2,.3]), walk([.02]*5)), (1., -1., 0.))


# %% [markdown]
# ## As rows
#
# A study keeps what it measured as rows, one number each, and draws from them. `what` says which measure; where a column does not apply it is left out.

# %%
#| export
def by_band(
    values,        # (4,)
    **columns,     # of the rows
)->list:
    "One row per band"
    return [dict(**columns, band=b, value=float(v)) for b,v in zip(BANDS, values)]

def by_frequency(
    x:torch.Tensor,    # images (n,c,h,w)
    **columns,         # of the rows
)->list:
    "Spectrum of the deviations from the mean image: one row per ring, and one per band"
    p = power(x - x.mean(0))
    return ([dict(**columns, what='power', freq=float(f), value=float(v)) for f,v in zip(*radial_power(p)[:2])]
            + by_band(band_energies(p).mean(0), what='energy', **columns))


# %%
white = by_frequency(noise, arm='noise')
print(*white[-2:], sep='\n')
test_eq([r['what'] for r in white], ['power']*7 + ['energy']*4)
test_close(sum(r['value'] for r in white[-4:]), .49, eps=.01)


# %%
#| export
@torch.no_grad()
def denoiser_rows(
    denoiser,                # pre-trained
    images:torch.Tensor,     # clean (n,c,h,w)
    noise:torch.Tensor,      # unit normal, same shape
    sigmas,                  # noise levels
    mean:torch.Tensor,       # mean image of the data (c,h,w)
    **columns,               # of the rows
)->list:
    "What a denoiser answers at each noise level (`power`, `energy`, `restored`), and the bands in each block (`share`)"
    rows = []
    for s in sigmas:
        with captured(denoiser, band_shares) as blocks: answer = denoiser(images + s*noise, s)
        rows += by_frequency(answer, sigma=s, **columns) + by_band(restored(answer, images, mean), what='restored', sigma=s, **columns)
        for k,v in blocks.items(): rows += by_band(v, what='share', block=k, sigma=s, **columns)
    return rows


# %%
#| export
@torch.no_grad()
def grams(
    denoiser,
    states:dict,     # noise level -> its input (n,c,h,w), the same images for all
)->dict:             # block -> centred Gram matrices, one per noise level
    "Inner products between images in each block, at each noise level"
    at = []
    for s,x in states.items():
        with captured(denoiser, centred_gram) as blocks: denoiser(x, s)
        at.append(blocks)
    return {k:[blocks[k] for blocks in at] for k in at[0]}

def similarity_rows(
    denoiser,                # pre-trained
    images:torch.Tensor,     # clean (n,c,h,w)
    noise:torch.Tensor,      # unit normal, same shape
    sigmas,                  # noise levels
    **columns,               # of the rows
)->list:
    "CKA of each block between noise levels (`cka`)"
    return [dict(what='cka', block=k, sigma=s, other=o, value=float(v), **columns) for k,g in grams(denoiser, {s:images + s*noise for s in sigmas}).items()
            for s,line in zip(sigmas, cka(g, g)) for o,v in zip(sigmas, line)]


# %%
#| export
@torch.no_grad()
def tuned_rows(
    generator,               # tuned; called once, at the first of `sigmas`
    denoiser,                # the pre-trained one
    noise:torch.Tensor,      # unit normal (n,c,h,w)
    sigmas,                  # noise levels, falling, geometric
    **columns,               # of the rows
)->list:
    "Bands in each block of a one-step generator (`share`), its CKA with the pre-trained block at each noise level (`match`), and where that is best (`level`)"
    top,rows = sigmas[0],[]
    with captured(generator, lambda m: (band_shares(m), [centred_gram(m)])) as tuned: samples = generator(top*noise, top)
    theirs = grams(denoiser, {s:on_the_way(noise, samples, s, top) for s in sigmas})
    for k,(share,gram) in tuned.items():
        match = cka(gram, theirs[k])[0]
        rows += by_band(share, what='share', block=k, sigma=top, **columns)
        rows += [dict(what='match', block=k, sigma=s, value=float(v), **columns) for s,v in zip(sigmas, match)]
        rows.append(dict(what='level', block=k, value=best_level(sigmas, match), **columns))
    return rows


# %% [markdown]
# On a network of random weights the rows mean nothing, but three things hold for any: a denoiser restores nearly everything at the lowest noise, a block is
# like itself at an equal level, and a "tuned" network that *is* the pre-trained one matches it best at 80, with similarity 1.

# %%
few = [80.,10.,1.25,.01]
z = latents(16, (1,8,8))
rows = (denoiser_rows(d, digits[:16], z, few, digits.mean(0), arm='teacher') + similarity_rows(d, digits[:16], z, few, arm='teacher')
        + tuned_rows(d, d, z, few, arm='d2o'))
pick = lambda **c: [r for r in rows if all(r.get(k) == v for k,v in c.items())]
assert min(r['value'] for r in pick(what='restored', sigma=.01)) > .95
for k in shapes:
    test_close([r['value'] for r in pick(what='cka', block=k) if r['sigma'] == r['other']], [1]*4, eps=1e-6)
    test_close(pick(what='match', block=k, sigma=80.)[0]['value'], 1, eps=1e-4)
    test_eq(pick(what='level', block=k)[0]['value'], 80.)
    test_close(sum(r['value'] for r in pick(what='share', block=k, sigma=1.25)), 1)
print(len(rows), 'rows;', *pick(what='level')[:2], sep='\n')
