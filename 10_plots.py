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
# # plots
#
# > The house style: figures that a paper can print, and that come out the same bytes each time

# %%
#| default_exp plots

# %%
#| export
import os, textwrap
from itertools import cycle
from pathlib import Path
from typing import NamedTuple
import numpy as np

# %%
#| hide
import subprocess, sys, tempfile
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from fastcore.test import *
from PIL import Image
from matplotlib.text import Text
from gdpt.data import load_images

# %% [markdown]
# A figure is drawn at the size it is printed, one column or the full text width, so that 7-point type is 7 points on paper. Colours are those of
# seaborn's `colorblind` palette, and an arm keeps its colour through all figures. Lines are named where they end rather than in a legend.
# Images are shown pixel by pixel, never smoothed.
#
# ## Style
#
# DejaVu Sans comes with matplotlib, so every machine sets the same type. Font type 42 embeds whole outlines in a PDF: type 3, the default, is
# refused by some journals.

# %%
#| export
COLUMN_WIDTH,TEXT_WIDTH = 3.3,6.75 # inches

def use_style()->None:
    "Set matplotlib's defaults to the house style, for the rest of the process"
    import matplotlib as mpl
    mpl.rcParams.update({
        'figure.figsize':(COLUMN_WIDTH,2.2), 'figure.dpi':150, 'savefig.dpi':300, 'figure.constrained_layout.use':True, 'pdf.fonttype':42,
        'font.family':'DejaVu Sans', 'font.size':7, 'axes.labelsize':7, 'axes.titlesize':7, 'xtick.labelsize':6.5, 'ytick.labelsize':6.5,
        'axes.spines.top':False, 'axes.spines.right':False, 'axes.linewidth':.6, 'xtick.major.width':.6, 'ytick.major.width':.6,
        'xtick.minor.width':.4, 'ytick.minor.width':.4, 'xtick.major.size':2.5, 'ytick.major.size':2.5, 'xtick.minor.size':1.5, 'ytick.minor.size':1.5,
        'lines.linewidth':1.2, 'lines.markersize':3.5})


# %%
use_style()
test_eq(plt.rcParams['pdf.fonttype'], 42)
test_eq(plt.figure().get_figwidth(), COLUMN_WIDTH)
plt.close()


# %% [markdown]
# ## Arms and measures
#
# The arms of the study `d2o`, by the names they have in `results.csv`. Colour is doubled by the marker, for print in grey.

# %%
#| export
class ArmStyle(NamedTuple):
    "How an arm is drawn"
    label:str   # as readers see it
    colour:str  # hexadecimal RGB
    marker:str  # matplotlib's code

ARM_STYLE = {
    'teacher':       ArmStyle('teacher', '#404040', 'x'),
    'untuned':       ArmStyle('untuned', '#707070', '+'),
    'd2o':           ArmStyle('D2O', '#0173b2', 'o'),
    'd2o_f':         ArmStyle('D2O-F', '#d55e00', 's'),
    'from_random':   ArmStyle('from random weights', '#029e73', '^'),
    'random_frozen': ArmStyle('random weights, frozen', '#cc78bc', 'D')}
METRIC_LABEL = {
    'fd':'Fréchet distance (first judge)', 'fd_alt':'Fréchet distance (second judge)', 'fd_pix':'Fréchet distance (pixels)',
    'kid':'kernel distance (first judge)', 'precision':'precision', 'recall':'recall', 'nearest':'distance to nearest training image'}


# %%
#| export
def arm_styles(
    arms,  # names of arms, in the order in which they are drawn
)->dict:   # name -> `ArmStyle`
    "The styles of these arms; those not in `ARM_STYLE` get the colours that it leaves"
    spare = cycle(zip(('#de8f05','#56b4e9','#ca9161','#fbafe4'), 'vP*X'))
    return {arm:ARM_STYLE.get(arm) or ArmStyle(arm.replace('_',' '), *next(spare)) for arm in arms}


# %%
styles = arm_styles(['d2o', 'encoder_disc', 'd2o_f', 'hinge'])
test_eq(styles['d2o'].label, 'D2O')
test_eq(styles['encoder_disc'].label, 'encoder disc')
test_eq(len({s.colour for s in styles.values()} | {s.colour for s in ARM_STYLE.values()}), 8)    # known or not, no colour twice
palette = set(sns.color_palette('colorblind').as_hex())
assert {s.colour for s in {**ARM_STYLE, **styles}.values()} - palette == {'#404040', '#707070'}   # all from the palette, but greys dark enough for text


# %% [markdown]
# ## Images
#
# Images are laid edge to edge, with a thin white gap, in one array: a single `imshow` is fast and keeps them aligned.

# %%
#| export
def tile(
    images,        # uint8, (n,c,h,w), c is 1 or 3; a tensor or an array
    ncols:int,     # images per row
)->np.ndarray:     # uint8, (height,width,3); the gaps between images are white
    "Lay images out in rows, as one RGB picture"
    x = np.asarray(images)
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] not in (1,3) or not len(x):
        raise ValueError(f'expected uint8 images of shape (n, 1 or 3, height, width), got {x.dtype} {x.shape}')
    n,_,h,w = x.shape
    gap,nrows = max(1, h//16),-(-n//ncols)
    out = np.full((nrows,h+gap,ncols,w+gap,3), 255, np.uint8)
    for i,im in enumerate(x): out[i//ncols,:h,i%ncols,:w] = im.transpose(1,2,0)
    return out.reshape(nrows*(h+gap), ncols*(w+gap), 3)[:-gap,:-gap]


# %%
picture = tile(torch.zeros(3,1,2,2, dtype=torch.uint8), ncols=2)
test_eq(picture[...,0].tolist(), [[0,0,255,0,0], [0,0,255,0,0], [255]*5, [0,0,255,255,255], [0,0,255,255,255]])
test_eq(tile(torch.full((1,3,4,5), 7, dtype=torch.uint8), 1).shape, (4,5,3))
test_fail(lambda: tile(torch.zeros(3,1,2,2), 2), contains='expected uint8 images')


# %%
#| export
def image_grid(
    images,          # uint8, (n,c,h,w), c is 1 or 3
    ncols:int=8,     # images per row
    ax=None,         # matplotlib axes; None: a new figure of one column's width
    title:str|None=None,
):                   # the axes
    "Show images in a grid, pixel by pixel"
    import matplotlib.pyplot as plt
    picture = tile(images, min(ncols, len(images)))
    if ax is None: ax = plt.subplots(figsize=(COLUMN_WIDTH, COLUMN_WIDTH*picture.shape[0]/picture.shape[1] + (.2 if title else 0)))[1]
    ax.imshow(picture, interpolation='nearest')
    ax.set(xticks=[], yticks=[], title=title)
    ax.spines[:].set_visible(False)
    return ax


# %%
digits = load_images('digits').images
ax = image_grid(digits[:24], ncols=12, title='digits')
test_eq(ax.images[0].get_array().shape, (2*9-1, 12*9-1, 3))


# %% [markdown]
# The gallery compares models: a row for each, a column for each latent.

# %%
#| export
def labelled_rows(
    rows:dict,  # label -> uint8 images, (n,c,h,w), equal shapes; one latent per column
    ax=None,    # matplotlib axes; None: a new figure of text width
    title:str|None=None,
):              # the axes
    "One labelled row of images per model"
    import matplotlib.pyplot as plt
    shapes = {label:tuple(images.shape) for label,images in rows.items()}
    if len(set(shapes.values())) != 1: raise ValueError(f'expected rows of images of one shape, got {shapes}')
    n,c,h,w = next(iter(shapes.values()))
    step = h + max(1, h//16)
    fig,ax = (None,ax) if ax is not None else plt.subplots(figsize=(TEXT_WIDTH,20))
    image_grid(np.concatenate([np.asarray(images) for images in rows.values()]), n, ax, title)
    ax.set_yticks([i*step + (h-1)/2 for i in range(len(rows))], [*rows])
    ax.tick_params(left=False)
    if fig is not None:                                               # the labels leave some width to the images, and that decides the height
        fig.draw_without_rendering()
        fig.set_figheight(ax.get_position().height*20 + (.3 if title else .1))
    return ax


# %%
g = torch.Generator().manual_seed(0)
noisy = lambda s: (digits[:20] + s*torch.randn(digits[:20].shape, generator=g)).clamp(0, 255).to(torch.uint8)
rows = {'real':digits[:20], 'noise 10':noisy(10), 'noise 40':noisy(40), 'noise 80, a long name':noisy(80)}
ax = labelled_rows(rows, title='the same digit in each column')
ax.figure.draw_without_rendering()
test_eq([t.get_text() for t in ax.get_yticklabels()], list(rows))
box = ax.get_tightbbox()
assert 0 < box.x0 < 20 and 0 < box.y0 < 20 and box.x1 < ax.figure.bbox.x1 and box.y1 < ax.figure.bbox.y1  # fills the figure, nothing cut off
test_fail(lambda: labelled_rows({'a':digits[:3], 'b':digits[:4]}), contains='expected rows of images of one shape')


# %% [markdown]
# ## Curves
#
# A measure over the number of real images seen, per arm: the mean over seeds as a line, the range of the seeds (smallest to largest) as a band.
# With three seeds the range is what was seen; a standard deviation of three numbers would suggest more than is known. A seed that diverged
# (not a number) breaks the line there instead of quietly leaving the mean.

# %%
#| export
def curves(
    ax,         # matplotlib axes
    rows,       # pandas DataFrame of one metric: columns arm, seed, nimg (real images seen), value
    arms=None,  # arms to draw, in this order; None: all, as they come
)->None:
    "Mean over seeds against images seen, with a band from the smallest to the largest seed; both axes logarithmic"
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
    if rows.duplicated(['arm','seed','nimg']).any(): raise ValueError('several values for one arm, seed and nimg: expected rows of one metric')
    ax.set(xscale='log', yscale='log', xlabel='real images seen')
    for arm,style in arm_styles(rows.arm.unique() if arms is None else arms).items():
        points = {nimg:v.to_numpy() for nimg,v in rows[rows.arm == arm].groupby('nimg').value}
        if not points or min(points) <= 0: raise ValueError(f'arm {arm!r} has {"nimg 0, which a log axis cannot show" if points else "no rows"}')
        low,mean,high = ([f(v) for v in points.values()] for f in (np.min, np.mean, np.max))
        ax.fill_between([*points], low, high, color=style.colour, alpha=.2, lw=0)
        ax.plot([*points], mean, color=style.colour, marker=style.marker, label=style.label)
    subs = (1,2,5) if rows.nimg.max() < 30*rows.nimg.min() else (1,)  # more numbers than these would touch in a column
    ax.xaxis.set(major_locator=LogLocator(subs=subs), major_formatter=EngFormatter(sep=''), minor_formatter=NullFormatter())
    subs = (1,2,5) if rows.value.max() < 100*rows.value.min() else (1,)
    ax.yaxis.set(major_locator=LogLocator(subs=subs), major_formatter='{x:g}', minor_formatter=NullFormatter())


# %%
#| export
def floor_line(
    ax,         # matplotlib axes
    values,     # one value or several (seeds, repeats)
    label:str,  # what it is
    colour:str='#707070',
)->None:
    "A horizontal line at the mean of `values`, with a band from the smallest to the largest"
    ax.axhspan(np.min(values), np.max(values), color=colour, alpha=.2, lw=0, zorder=.5)
    ax.axhline(np.mean(values), color=colour, lw=.8, ls='--', label=label, zorder=.6)


# %% [markdown]
# `end_labels` takes the place of `ax.legend()`, and like it is called last. Every line with a label gets its name to the right of the axes, at
# the height of its end. Names that would overlap are moved apart by as little as possible: with their order kept, that is an isotonic
# regression, which SciPy solves.

# %%
#| export
def spread(
    y,       # where labels want to be, ascending, (n,)
    height,  # their heights, same unit, (n,)
    top,     # centres stay within 0 and `top`
):           # where they go, (n,)
    "Move labels apart by the least sum of squares, keeping their order"
    from scipy.optimize import isotonic_regression
    height = np.asarray(height)
    offset = np.r_[0, np.cumsum((height[1:]+height[:-1])/2)]
    return np.clip(isotonic_regression(y - offset).x, 0, top - offset[-1]) + offset


# %%
test_close(spread([.1,.5,.9], [.1]*3, 1), [.1,.5,.9])              # room enough: nothing moves
test_close(spread([.5,.5], [.2]*2, 1), [.4,.6])                    # both give way alike
test_close(spread([.1,.5,.52,.9], [.1]*4, 1), [.1,.46,.56,.9])     # ... and the others stay
test_close(spread([0,0], [.2]*2, 1), [0,.2])                       # not below the axes


# %%
#| export
def end_labels(
    ax,            # matplotlib axes; its limits are final
    width:int=18,  # letters per line of a label
)->None:
    "Name every labelled line at its end, right of the axes; in place of a legend, called last"
    ax.figure.draw_without_rendering()                                    # the layout decides how high the axes are
    ax.set_ylim(ax.get_ylim())
    to_axes,height = ax.transAxes.inverted(),ax.get_window_extent().height
    ends = []
    for line in ax.get_lines():
        xy = line.get_xydata()[np.isfinite(line.get_xydata()).all(1)]
        if line.get_label().startswith('_') or not len(xy): continue
        y = np.clip(to_axes.transform(line.get_transform().transform(xy[-1]))[1], 0, 1)
        ends.append((y, line, xy[-1], textwrap.fill(line.get_label(), width)))
    ends.sort(key=lambda e: e[0])
    lines_of_text = np.array([e[3].count('\n')+1 for e in ends])
    size = ax.xaxis.label.get_size()
    for (_,line,xy,text),y in zip(ends, spread([e[0] for e in ends], lines_of_text*1.25*size*ax.figure.dpi/72/height, 1)):
        ax.annotate(text, xy, (1.05,y), xycoords=line.get_transform(), textcoords='axes fraction', color=line.get_color(), size=size, va='center',
            linespacing=1.05, annotation_clip=False, arrowprops=dict(arrowstyle='-', color=line.get_color(), lw=.4, shrinkA=0, shrinkB=0, relpos=(0,.5)))


# %% [markdown]
# Invented rows: four arms, three seeds, two of the arms nearly equal at the end.

# %%
rng = np.random.default_rng(0)
marks = [5_000, 10_000, 25_000, 50_000]
level = {'d2o':(40,.85), 'd2o_f':(34,.87), 'from_random':(700,1.6), 'random_frozen':(420,.06)}
invented = pd.DataFrame([dict(arm=arm, seed=seed, nimg=n, value=a*(n/5_000)**-b*np.exp(.15*rng.standard_normal()))
                         for arm,(a,b) in level.items() for seed in range(1 if arm == 'random_frozen' else 3) for n in marks])

# %%
fig,ax = plt.subplots()
curves(ax, invented)
floor_line(ax, [8.9,10.2,12.4], 'half against half')
floor_line(ax, [1.6,2.0], 'teacher, 35 calls', ARM_STYLE['teacher'].colour)
floor_line(ax, 1112, 'untuned')
ax.set_ylabel(METRIC_LABEL['fd'])
end_labels(ax)

# %%
line = next(l for l in ax.get_lines() if l.get_label() == 'D2O')
np.testing.assert_allclose(line.get_xydata(), invented[invented.arm == 'd2o'].groupby('nimg').value.mean().reset_index())
fig.draw_without_rendering()
boxes = sorted((Text.get_window_extent(t) for t in ax.texts), key=lambda b: b.y0)      # of the letters, without the leader
test_eq(len(boxes), 7)
assert all(a.y1 <= b.y0 + .5 for a,b in zip(boxes, boxes[1:]))          # no label over another (half a dot of rounding)
assert all(ax.get_window_extent().x1 < b.x0 and b.x1 <= fig.bbox.x1 for b in boxes) # right of the axes, inside the figure
test_eq([t.get_color() for t in ax.texts if t.get_text() == 'D2O-F'], [ARM_STYLE['d2o_f'].colour])

# %% [markdown]
# Over the text width, two panels: each names its own lines, so either can be read alone.

# %%
wide,axs = plt.subplots(1, 2, figsize=(TEXT_WIDTH,2.3))
for ax,metric,scale in zip(axs, ('fd','fd_pix'), (1,.02)):
    curves(ax, invented.assign(value=invented.value*scale), ['d2o_f','d2o','from_random'])
    floor_line(ax, np.array([1.6,2.0])*scale, 'teacher')
    ax.set_ylabel(METRIC_LABEL[metric])
    end_labels(ax)

# %%
fig2,ax = plt.subplots()
test_fail(lambda: curves(ax, pd.concat([invented,invented])), contains='several values for one arm, seed and nimg')
test_fail(lambda: curves(ax, invented, ['d3o']), contains="arm 'd3o' has no rows")
test_fail(lambda: curves(ax, invented.assign(nimg=0, seed=range(len(invented)))), contains='a log axis cannot show')
diverged = invented.copy()
diverged.loc[(diverged.arm == 'd2o') & (diverged.seed == 1) & (diverged.nimg == 25_000), 'value'] = np.nan
curves(ax, diverged, ['d2o'])
test_eq(np.isnan(ax.get_lines()[-1].get_ydata()).tolist(), [False,False,True,False])
plt.close(fig2)


# %% [markdown]
# ## Files
#
# Each figure is saved for the screen (png) and for print (pdf). A time stamp or a version inside the file would make every rebuild look like a
# change, so both are left out. The files are written under temporary names and renamed when both are complete: a full disk leaves the
# figure of before.

# %%
#| export
def save_figure(
    fig,        # a matplotlib figure
    name:str,   # file name without extension
    folder,     # created if missing
)->tuple:       # paths of the png and the pdf
    "Save as png and pdf, the same bytes for the same figure"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {'png':{'Software':None}, 'pdf':dict.fromkeys(('Creator','Producer','CreationDate'))}
    drafts = {ext:folder/f'.{name}.{ext}.{os.getpid()}' for ext in metadata}
    try:
        for ext,draft in drafts.items(): fig.savefig(draft, format=ext, metadata=metadata[ext])
        return tuple(draft.replace(folder/f'{name}.{ext}') for ext,draft in drafts.items())
    finally:
        for draft in drafts.values(): draft.unlink(missing_ok=True)


# %%
tmp = tempfile.TemporaryDirectory()
png,pdf = save_figure(fig, 'curves', Path(tmp.name)/'figures')
test_eq(sorted(f.name for f in png.parent.iterdir()), ['curves.pdf', 'curves.png'])          # no drafts left
test_eq(Image.open(png).size, (round(COLUMN_WIDTH*300), round(2.2*300)))
test_eq(Image.open(png).text, {})
assert b'CreationDate' not in pdf.read_bytes() and b'/Type3' not in pdf.read_bytes()

# %% [markdown]
# Two fresh processes, which hash strings differently, write the same bytes.

# %%
script = '''
import sys, pandas as pd
import matplotlib.pyplot as plt
from gdpt.plots import curves, end_labels, save_figure, use_style
use_style()
fig,ax = plt.subplots()
curves(ax, pd.DataFrame([dict(arm=a, seed=s, nimg=n, value=v+s+n/9) for a,v in (('d2o',3),('d2o_f',4)) for s in (0,1) for n in (10,20)]))
end_labels(ax)
save_figure(fig, 'x', sys.argv[1])
'''
for seed in '12':
    env = {**os.environ, 'PYTHONHASHSEED':seed, 'MPLBACKEND':'agg', 'PYTHONPATH':os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, '-c', script, f'{tmp.name}/{seed}'], check=True, env=env)
for ext in ('png','pdf'): test_eq(*[(Path(tmp.name)/s/f'x.{ext}').read_bytes() for s in '12'])


# %% [markdown]
# A save that fails leaves the figure of before and no draft.

# %%
class Broken:
    def savefig(self, path, format, metadata):
        path.write_bytes(b'half a fi')
        if format == 'pdf': raise OSError(28, 'No space left on device')

old = png.read_bytes()
test_fail(lambda: save_figure(Broken(), 'curves', png.parent), contains='No space left')
test_eq(png.read_bytes(), old)
test_eq(len([*png.parent.iterdir()]), 2)
tmp.cleanup()
