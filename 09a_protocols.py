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
# # protocols
#
# > The measures that papers print (FID, KID, Inception score, precision and recall, CLIP-FID, FD-DINOv2), each with its image count in its name and its recipe beside it

# %%
#| default_exp protocols

# %%
#| hide
import io, os, tempfile, warnings
from dataclasses import replace
import numpy as np
from fastcore.test import *
from gdpt.data import load_images, make_images
from gdpt.metrics import frechet_distance

# %%
#| export
import hashlib, io, json, math, os, pickle, warnings, zipfile, zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from gdpt.checkpoints import load_tensors, save_tensors
from gdpt.data import Images, keyed_generator, project_root, to_float
from gdpt.metrics import floors, measure, register
from gdpt.training import fingerprint

# %% [markdown]
# `gdpt.metrics` measures in spaces of our own, where a number can only be compared with numbers from here. To be held against a paper, a number needs
# the paper's space: **FID** is the Fréchet distance in the last features of one Inception network, **CLIP-FID** that of CLIP's image encoder,
# **FD-DINOv2** that of a self-supervised transformer. Such a number also depends on how many images were drawn (few images make every one of these
# distances larger), on the resize to the network's input, on rounding to bytes and on which file the weights came from. So in this room a value is
# never called `fid`: 50,000 images give `fid50k`, 5,000 give `fid5k`, and each comes with its **protocol**, a dictionary of everything else.
#
# The networks' forward passes, their resize and the measures are torch-fidelity's. Its way of getting weights is not used: it would download them
# and unpickle whatever arrives.

# %%
assert_close = torch.testing.assert_close
data = load_images('digits')
home = tempfile.TemporaryDirectory()
os.environ['GDPT_ROOT'] = home.name                     # caches of this notebook go to a folder that vanishes with it
RGB = make_images('rgb digits', data.images[:400].repeat(1, 3, 1, 1))


# %% [markdown]
# ## DINOv2
#
# torch-fidelity runs DINOv2 by code that `torch.hub` fetches, and takes no local weights. The network is small enough to be written here, after the
# names in the published files, from which its size is read: a vision transformer with heads of 64 channels and a learned factor on every residual branch.

# %%
#| export
class DinoBlock(nn.Module):
    "A transformer block, its parameters named as in the DINOv2 files (Oquab et al. 2023)"
    def __init__(self,
        width:int,  # channels of a token
        hidden:int, # channels inside the MLP
    ):
        super().__init__()
        self.norm1,self.norm2 = nn.LayerNorm(width, eps=1e-6),nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({'qkv':nn.Linear(width, 3*width), 'proj':nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({'fc1':nn.Linear(width, hidden), 'fc2':nn.Linear(hidden, width)})
        self.ls1,self.ls2 = nn.ParameterDict({'gamma':torch.ones(width)}),nn.ParameterDict({'gamma':torch.ones(width)})

    def forward(self, x): # tokens (n,t,width)
        n,t,width = x.shape
        q,k,v = self.attn['qkv'](self.norm1(x)).reshape(n, t, 3, width//64, 64).permute(2, 0, 3, 1, 4)   # each (n,heads,t,64)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, width)
        x = x + self.ls1['gamma']*self.attn['proj'](mixed)
        return x + self.ls2['gamma']*self.mlp['fc2'](F.gelu(self.mlp['fc1'](self.norm2(x))))


# %%
block = DinoBlock(128, 256)
test_eq(block(torch.randn(2, 5, 128)).shape, (2, 5, 128))
assert {'attn.qkv.weight', 'ls2.gamma', 'mlp.fc1.bias', 'norm1.weight'} <= set(block.state_dict())


# %% [markdown]
# The positions were learned on a grid of 37x37 patches, and images of 224 pixels have 16x16. In the release they are resampled bicubically by the
# factor 16.1/37 rather than 16/37 (an old guard against round-off), and since features of pre-trained weights depend on it, so it is here.

# %%
#| export
class DinoV2(nn.Module):
    "DINOv2's image encoder, built to fit the weights"
    def __init__(self,
        state:dict, # name -> tensor, as published (`dinov2_vitl14_pretrain.pth`)
    ):
        super().__init__()
        (out,_,patch,_),hidden = state['patch_embed.proj.weight'].shape,state['blocks.0.mlp.fc1.weight'].shape[0]
        self.patch_embed = nn.ModuleDict({'proj':nn.Conv2d(3, out, patch, stride=patch)})
        for name in ('cls_token','pos_embed','mask_token'): setattr(self, name, nn.Parameter(torch.zeros_like(state[name])))
        self.blocks = nn.ModuleList(DinoBlock(out, hidden) for _ in range(1 + max(int(k.split('.')[1]) for k in state if k.startswith('blocks.'))))
        self.norm = nn.LayerNorm(out, eps=1e-6)
        self.load_state_dict(state)

    def positions(self, h:int, w:int): # patches down and across
        "Position embeddings (1,1+h*w,width) for a grid of patches"
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (h, w) == (side, side): return self.pos_embed
        grid = self.pos_embed[:,1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, scale_factor=((h+.1)/side, (w+.1)/side), mode='bicubic')
        return torch.cat([self.pos_embed[:,:1], grid.flatten(2).transpose(1, 2)], 1)

    def forward(self, x): # normalised images (n,3,h,w)
        x = self.patch_embed['proj'](x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + self.positions(*x.shape[2:])
        for block in self.blocks: tokens = block(tokens)
        return self.norm(tokens)[:,0]


# %% [markdown]
# A made-up file of the published form, 64 channels wide and two blocks deep. Resampling nearly reproduces straight lines, so positions that rise by 1
# from patch to patch show which factor was used: the 13th of 16 patches lies at `12.5*37/16.1 - .5`, 28.23, and by the factor 16/37 it would be 28.41.

# %%
def dino_weights(width=64, depth=2, side=37):
    "Random weights under DINOv2's names"
    shapes = {'cls_token':(1,1,width), 'pos_embed':(1,1+side*side,width), 'mask_token':(1,width), 'patch_embed.proj.weight':(width,3,14,14),
              'patch_embed.proj.bias':(width,), 'norm.weight':(width,), 'norm.bias':(width,)}
    for i in range(depth): shapes |= {f'blocks.{i}.{k}':tuple(v.shape) for k,v in DinoBlock(width, 4*width).state_dict().items()}
    gen = torch.Generator().manual_seed(0)
    return {k:.1*torch.randn(s, generator=gen) + 1.*k.endswith(('norm.weight','norm1.weight','norm2.weight')) for k,s in shapes.items()}

state = dino_weights()
state['pos_embed'][0,1:,0] = torch.arange(37.).repeat_interleave(37)
dino = DinoV2(state)
test_eq(dino(torch.randn(2, 3, 224, 224)).shape, (2, 64))
rows = dino.positions(16, 16)[0,1:,0].view(16, 16)
assert_close(rows[12], torch.full((16,), 28.23), rtol=0, atol=.06)
assert dino.positions(37, 37) is dino.pos_embed

# %% [markdown]
# ## Spaces
#
# A space names a network of torch-fidelity's, the layer whose activations are its features, and what is measured there. It also names the file of the
# weights, with the SHA-256 under which that file is known, so that nothing else is ever opened. Like a judge it has a `name`, a `checksum` and
# `features`, so that either can be handed to `gdpt.metrics`.

# %%
#| export
RECIPE = 1   # raise it when features or references change without a space showing it

@dataclass(frozen=True)
class Space:
    "A public feature space and what is measured in it"
    name:str                # how configs call it
    extractor:str           # torch-fidelity's name of the network
    layer:str               # of the features
    measures:tuple          # pairs: name of the value without its count; 'fd', 'kid', 'is', 'precision' or 'recall'
    logits:str=''           # layer of the Inception score
    resize:str=''           # what the network does to the images first
    file:str=''             # weights, in `weights_folder()`; '': the space has none
    sha256:str=''           # of that file
    url:str=''              # where it is published
    script:bool=False       # is the file a TorchScript archive?

    @property
    def weights_sha256(self)->str:
        "Of the file that is there; '' where the space needs none"
        return sha256_of(find_weights(self)) if self.file else ''

    @property
    def identity(self)->str:
        "Whatever decides the features, as a key"
        said = [RECIPE, self.extractor, self.layer, self.logits, self.weights_sha256, version('torch-fidelity')]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    @property
    def checksum(self)->str:
        "Whatever decides a measurement: the features, what is measured, and the code"
        said = [self.identity, self.measures, fingerprint(['protocols'])]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    @property
    def facts(self)->dict:
        "What a reader should know of it, as text"
        return dict(judge=self.name, extractor=self.extractor, layer=self.layer, weights=self.weights_sha256[:10])

    def features(self,
        images:torch.Tensor, # uint8, (n,c,h,w)
    )->torch.Tensor:         # (n,f)
        "Features of images that are at hand; `extract` is for many"
        return extract(images.split(250), [self])[self.name].features.to(images.device)


# %% [markdown]
# Weights lie in `data/weights`, or where the environment variable `GDPT_WEIGHTS` says. Whoever has not got a file yet is told its name, its place and
# where it is published.

# %%
#| export
def weights_folder()->Path:
    "`GDPT_WEIGHTS`, else `data/weights` of the project"
    return Path(os.environ.get('GDPT_WEIGHTS') or project_root()/'data'/'weights')

@lru_cache(maxsize=16)
def _sha256(path:Path, stamp:tuple)->str:
    with open(path, 'rb') as f: return hashlib.file_digest(f, 'sha256').hexdigest()

def sha256_of(path:Path)->str:
    "SHA-256 of a file, read again only when the file has changed"
    return _sha256(path, (path.stat().st_mtime_ns, path.stat().st_size))

def find_weights(space:Space)->Path:
    "The file of a space's weights, if it is there and the right one"
    path = weights_folder()/space.file
    if not path.is_file(): raise FileNotFoundError(
        f"no weights of '{space.name}': expected {space.file} in {path.parent} (GDPT_WEIGHTS names another folder), as published at {space.url}")
    if sha256_of(path) != space.sha256: raise ValueError(
        f"{path} has SHA-256 {sha256_of(path)[:16]}..., expected {space.sha256[:16]}...: put back a whole copy from {space.url}")
    return path


# %% [markdown]
# Three spaces are the ones of the literature. Precision and recall are taken in Inception's features with three neighbours, as the rival tables on
# ImageNet 64 do; torch-fidelity's own default for them is VGG16. Two more spaces need no weights and cost nothing: the mean colours of the cells of a 4x4
# grid and the contrast inside them. They say little about quality. Smoke runs go through them, because the line of code that is run is the same.

# %%
#| export
_inception = (('fid','fd'), ('kid','kid'), ('is','is'), ('precision','precision'), ('recall','recall'))
_cells = (('fd_cells','fd'), ('kid_cells','kid'), ('precision_cells','precision'), ('recall_cells','recall'))
_bilinear = 'pixels, bilinear without antialiasing, as in TensorFlow 1'

SPACES = {s.name:s for s in (
    Space('inception', 'inception-v3-compat', '2048', _inception, 'logits_unbiased', f'299x299 {_bilinear}',
        'weights-inception-2015-12-05-6726825d.pth', '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2',
        'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth'),
    Space('clip', 'clip-vit-b-32', 'clip', (('clip_fid','fd'),), resize=f'224x224 {_bilinear}', file='ViT-B-32.pt', script=True,
        sha256='40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af',
        url='https://openaipublic.azureedge.net/clip/models/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt'),
    Space('dinov2', 'gdpt-dinov2', 'dinov2', (('fd_dinov2','fd'),), resize=f'224x224 {_bilinear}', file='dinov2_vitl14_pretrain.pth',
        sha256='d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428',
        url='https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth'),
    Space('cells', 'gdpt-cells', 'mean', _cells), Space('contrasts', 'gdpt-cells', 'contrast', (('fd_contrasts','fd'),)))}

# %%
inception,clip,dinov2,cells,contrasts = SPACES.values()
test_eq(weights_folder(), Path(home.name).resolve()/'data'/'weights')
test_fail(lambda: inception.checksum, contains='expected weights-inception-2015-12-05-6726825d.pth in')
test_eq(cells.weights_sha256, '')
assert cells.identity != contrasts.identity != replace(contrasts, layer='mean').identity


# %% [markdown]
# ## Opening the networks
#
# torch-fidelity unpickles the file that it is given. It is therefore not given the file: the bytes are read once, their checksum is compared, tensors
# are read by torch's restricted unpickler (`weights_only`), and torch-fidelity gets a copy that we wrote. CLIP is published as a TorchScript archive, for
# which there is no restricted reader; there the checksum alone stands guard.

# %%
#| export
def safe_weights(
    space:Space,
    path:Path,
)->io.BytesIO: # a file that torch-fidelity can open
    "The weights of a space, without running what might be stored beside them"
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != space.sha256: raise ValueError(f'{path} has changed while it was read: put back a whole copy from {space.url}')
    if space.script: return io.BytesIO(raw)
    torch.save(torch.load(io.BytesIO(raw), map_location='cpu', weights_only=True), copy := io.BytesIO())
    return io.BytesIO(copy.getvalue())


# %% [markdown]
# Our two additions become known to torch-fidelity: DINOv2 from a file, with torch-fidelity's resize and normalisation, and the cells.

# %%
#| export
@lru_cache
def add_extractors():
    "Make DINOv2 from a file, cells and pixels known to torch-fidelity"
    from torch_fidelity import FeatureExtractorBase, register_feature_extractor
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
    class FromFile(FeatureExtractorDinoV2):
        def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
            FeatureExtractorBase.__init__(self, name, features_list)
            self.feature_extractor_internal_dtype = torch.float32
            self.model = DinoV2(torch.load(feature_extractor_weights_path, weights_only=True))
    class Cells(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs): super().__init__(name, features_list)
        get_provided_features_list = staticmethod(lambda: ('mean','contrast'))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: 'mean')
        can_be_compiled = staticmethod(lambda: False)
        def forward(self, images):
            x = to_float(images)
            mean,square = F.adaptive_avg_pool2d(x, 4),F.adaptive_avg_pool2d(x**2, 4)
            found = dict(mean=mean, contrast=(square - mean**2).clamp(min=0).sqrt())
            return tuple(found[k].flatten(1) for k in self.features_list)
    register_feature_extractor('gdpt-dinov2', FromFile)
    register_feature_extractor('gdpt-cells', Cells)
    register()


# %%
#| export
@lru_cache(maxsize=4)
def _opened(space:Space, path, stamp, device:str):
    from torch_fidelity.utils import create_feature_extractor
    add_extractors()
    layers = [k for k in (space.layer, space.logits) if k]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter('ignore')                        # TorchScript is deprecated, and CLIP is published in it
        try: net = create_feature_extractor(space.extractor, layers, cuda=False, verbose=False, feature_extractor_weights_path=path and safe_weights(space, path))
        except (RuntimeError, ValueError, LookupError, AttributeError, TypeError, EOFError, pickle.UnpicklingError) as e: raise ValueError(
            f"{path} holds no weights of '{space.extractor}' ({type(e).__name__}): put back a whole copy from {space.url}") from None
    return net.to(device)

def open_extractor(
    space:Space,
    device:str,  # where it is to run
):               # an `nn.Module` of torch-fidelity's: uint8 images -> tuple of layers, in evaluation mode
    "The network of a space, read once per process"
    path = find_weights(space) if space.file else None
    return _opened(space, path, path and (path.stat().st_mtime_ns, path.stat().st_size), device)


# %%
def written(space, content):
    "The space with a file of its own, under its checksum"
    folder = weights_folder()
    folder.mkdir(parents=True, exist_ok=True)
    name = f'made-up-{space.file}'
    (folder/name).write_bytes(content)
    return replace(space, file=name, sha256=sha256_of(folder/name))

def saved(state): torch.save(state, f := io.BytesIO()); return f.getvalue()

tiny_dino = written(dinov2, saved(dino_weights()))
test_eq(open_extractor(tiny_dino, 'cpu')(RGB.images[:3])[0].shape, (3, 64))
found, = open_extractor(cells, 'cpu')(data.images[:2])
test_eq(found.shape, (2, 16))
assert_close(found[0,0], (data.images[0,0,:2,:2].float()/127.5 - 1).mean())
assert open_extractor(cells, 'cpu') is open_extractor(cells, 'cpu')


# %% [markdown]
# Here is what becomes of files that are not what they should be: another file under the name, a pickle that would run something, weights of something
# else, half a file.

# %%
class Evil:
    def __reduce__(self): return os.mkdir, (f'{home.name}/evil',)

test_fail(lambda: open_extractor(replace(tiny_dino, sha256='0'*64), 'cpu'), contains='expected 0000000000000000')
for content in (saved(Evil()), saved({'w':torch.ones(2)}), saved(dino_weights())[:90_000], b'', saved([1])):
    test_fail(lambda: open_extractor(written(dinov2, content), 'cpu'), contains="holds no weights of 'gdpt-dinov2'")
test_fail(lambda: open_extractor(written(inception, saved({'w':torch.ones(2)})), 'cpu'), contains="holds no weights of 'inception-v3-compat'")
test_fail(lambda: open_extractor(written(clip, b'no archive'), 'cpu'), contains="holds no weights of 'clip-vit-b-32'")
assert not Path(f'{home.name}/evil').exists()

# %% [markdown]
# ## One pass over the images
#
# Images arrive in batches, on the device that made them, and go through the networks of all spaces at once; only features stay. Mean and covariance
# are accumulated in float64 over all images, as sums about the first batch's mean (the sum of squares minus the square of the sum would lose digits
# if the features were far from 0). Besides, the features of the first 50,000 images are kept for the measures that compare single images: 400 MB for Inception.

# %%
#| export
KEEP = 50_000   # images whose features are kept

class Moments:
    "Mean and covariance of rows that come in pieces"
    def __init__(self): self.n = 0

    def add(self, x): # (b,f)
        x = x.double()
        if not self.n: self.about,self.sum,self.outer = x.mean(0),torch.zeros_like(x[0]),x.new_zeros(x.shape[1], x.shape[1])
        d = x - self.about
        self.n,self.sum,self.outer = self.n + len(x),self.sum + d.sum(0),self.outer + d.T@d

    def mean_cov(self)->tuple: # float64 on the CPU, (f,) and (f,f)
        return (self.about + self.sum/self.n).cpu(), ((self.outer - self.sum.outer(self.sum)/self.n)/(self.n - 1)).cpu()


# %%
x = 1000 + torch.randn(1000, 5, dtype=torch.float64)@torch.randn(5, 5, dtype=torch.float64)
for size in (1000, 7):
    moments = Moments()
    for part in x.split(size): moments.add(part)
    assert_close(moments.mean_cov()[0], x.mean(0))
    assert_close(moments.mean_cov()[1].numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-10, atol=1e-10)


# %% [markdown]
# The arithmetic of the networks is float32 proper. TF32, which torch allows in convolutions unless it is told otherwise, has ten bits, and an
# evaluation inside somebody's autocast would have eight.

# %%
#| export
@contextmanager
def exact():
    "float32 without TF32 and without autocast"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('highest')
    try:
        with (torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False),
              torch.autocast('cuda', enabled=False), torch.autocast('cpu', enabled=False)): yield
    finally: torch.set_float32_matmul_precision(before)


# %%
with torch.autocast('cpu', dtype=torch.bfloat16), exact(): test_eq((torch.ones(2, 2)@torch.ones(2, 2)).dtype, torch.float32)


# %%
#| export
@dataclass
class Features:
    "What is known of a set of images in one space"
    n:int                            # images
    mu:torch.Tensor                  # mean, float64, (f,)
    cov:torch.Tensor                 # covariance, float64, (f,f)
    features:torch.Tensor|None=None  # of the first `KEEP` images, (m,f)
    logits:torch.Tensor|None=None    # for the Inception score, (m,classes)

def check_batch(
    images:torch.Tensor, # any
):
    "Refuse what is no batch of images"
    if images.dtype != torch.uint8 or images.ndim != 4: raise ValueError(f'expected batches of uint8 images (n,c,h,w), got {images.dtype} of shape {tuple(images.shape)}')

def extract(
    batches,             # iterable of uint8 images (b,c,h,w), on any device
    spaces,              # of `Space`
    batch_size:int=250,  # images at a time through a network; changes round-off only
)->dict:                 # name of a space -> `Features`
    "Run images through the networks of several spaces, in one pass"
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    nets,n = {s.name:open_extractor(s, device) for s in spaces},0
    moments,kept = {s.name:Moments() for s in spaces},{s.name:[] for s in spaces}
    for batch in batches:
        check_batch(batch)
        for x in batch.split(batch_size):
            for s in spaces:
                with exact(): found = nets[s.name](x.to(device))
                moments[s.name].add(found[0])
                if n < KEEP: kept[s.name].append([f[:KEEP-n] for f in found])
            n += len(x)
    if n < 2: raise ValueError(f'{n} images are too few to measure, expected at least 2')
    return {k:Features(n, *moments[k].mean_cov(), *map(torch.cat, zip(*kept[k]))) for k in nets}


# %%
once = extract(data.images.split(100), [cells, contrasts])
again = extract([data.images], [cells], batch_size=31)
test_eq((once['cells'].n, once['cells'].features.shape, once['cells'].logits), (1797, (1797, 16), None))
assert_close(once['cells'].features, again['cells'].features)
assert_close(once['cells'].cov, again['cells'].cov, rtol=1e-10, atol=1e-10)
assert_close(once['cells'].cov.numpy(), np.cov(once['cells'].features.double().numpy(), rowvar=False), rtol=1e-10, atol=1e-10)
test_fail(lambda: extract([data.images.float()], [cells]), contains='expected batches of uint8 images')
test_fail(lambda: extract([], [cells]), contains='too few to measure')


# %% [markdown]
# ## Measures
#
# torch-fidelity computes them, with its own defaults throughout: KID over 100 random subsets of 1,000 images, precision and recall with three neighbours,
# the Inception score over ten parts of the images. Fewer images than 1,000 make smaller subsets.

# %%
#| export
def compare(
    space:Space,
    samples:Features,
    real:Features,   # the reference; without features of single images, what needs them is left out
)->dict:             # name without its count -> value
    "Samples against real images, by the measures of a space"
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
    if samples.mu.shape != real.mu.shape: raise ValueError(f"'{space.name}' has {len(samples.mu)} features and what it is compared with has {len(real.mu)}: was it made in another space?")
    wanted,out = {m for _,m in space.measures},{}
    statistics = [dict(mu=f.mu.numpy(), sigma=f.cov.numpy()) for f in (samples, real)]
    if 'fd' in wanted: out['fd'] = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    if 'is' in wanted: out['is'] = isc_features_to_metric(samples.logits.cpu())[KEY_METRIC_ISC_MEAN]
    if real.features is not None:
        pair = samples.features,real.features.to(samples.features.device)
        if 'kid' in wanted: out['kid'] = kid_features_to_metric(*pair, kid_subset_size=min(1000, *map(len, pair)), verbose=False)[KEY_METRIC_KID_MEAN]
        if 'precision' in wanted: out |= prc_features_to_metric(*pair, save_cpu_ram=True, verbose=False)   # samples first, then what is real
    return {name:out[m] for name,m in space.measures if m in out}


# %% [markdown]
# Which of the two sets comes first is easily got wrong, and precision and recall are then swapped without anything looking odd. A case with a known
# answer: real images are ones and sevens, and the samples only the ones. Every sample is like some real image: precision 1. Half of
# what is real, the sevens, never appears: recall about a half.

# %%
ones_and_sevens,ones = (data.images[torch.isin(data.labels, torch.tensor(c))] for c in ([1,7], [1]))
real,part = (extract([x], [cells])['cells'] for x in (ones_and_sevens, ones))
values = compare(cells, part, real)
print(values)
test_eq(values['precision_cells'], 1.)
assert .5 < values['recall_cells'] < .8
test_eq(compare(cells, real, part)['recall_cells'], 1.)                 # the other way round
assert abs(compare(cells, real, real)['fd_cells']) < 1e-6               # nothing is as near as a set itself
test_eq(set(compare(cells, part, Features(real.n, real.mu, real.cov))), {'fd_cells'})

# %% [markdown]
# Two Gaussians with diagonal covariances have a closed form: the squared distance of the means, plus those of the standard deviations.

# %%
mu,sd = torch.randn(2, 6, dtype=torch.float64),torch.rand(2, 6, dtype=torch.float64)
a,b = (Features(2, m, torch.diag(s**2)) for m,s in zip(mu, sd))
assert_close(compare(contrasts, a, b)['fd_contrasts'], ((mu[0]-mu[1])**2 + (sd[0]-sd[1])**2).sum().item())

# %% [markdown]
# A space has what `gdpt.metrics` asks of a judge, so it serves there too.

# %%
assert_close(frechet_distance(ones, ones_and_sevens, contrasts), compare(contrasts, *(extract([x], [contrasts])['contrasts'] for x in (ones, ones_and_sevens)))['fd_contrasts'],
             rtol=1e-6, atol=1e-9)


# %% [markdown]
# ## References
#
# What real images look like in a space is computed once and kept in `data/cache/references`, under a key made of the checksum of the images and of all
# that decides the features. A file that does not hold what was written into it is thrown away, and computed again. More images than 50,000 are visited
# in a random order, the same each time, since files are often sorted by class and single features are kept of the first ones only.

# %%
#| export
def tensors_checksum(tensors:dict)->str:
    "SHA-256 of named tensors"
    h = hashlib.sha256()
    for k in sorted(tensors):
        h.update(f'{k} {tensors[k].dtype} {tuple(tensors[k].shape)}'.encode())
        h.update(tensors[k].contiguous().numpy())
    return h.hexdigest()

def image_batches(
    data:Images,
    size:int=1000,
):                # yields uint8 (b,c,h,w)
    "All images, in an order whose beginning stands for the whole"
    order = torch.randperm(data.n, generator=keyed_generator('reference order')) if data.n > KEEP else torch.arange(data.n)
    for idx in order.split(size): yield data.images[idx]

def reference(
    data:Images,
    space:Space,
)->Features:
    "Real images in a space, computed on first use"
    from filelock import FileLock
    key = hashlib.sha256(f'{data.checksum}{space.identity}'.encode()).hexdigest()[:16]
    path = project_root()/'data'/'cache'/'references'/f'{space.name}-{key}.safetensors'
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix('.lock')):
        if path.exists():
            try:
                tensors,meta = load_tensors(path)
                if meta.get('checksum') != tensors_checksum(tensors): raise ValueError(f'{path} differs from its checksum')
                return Features(meta['n'], **tensors)
            except (ValueError, KeyError, TypeError) as e: print(f'{str(e).splitlines()[0]}; computing it again')
        found = extract(image_batches(data), [space])[space.name]
        tensors = {k:v.cpu() for k,v in vars(found).items() if isinstance(v, torch.Tensor)}
        save_tensors(path, tensors, checksum=tensors_checksum(tensors), n=found.n, data=data.name, data_checksum=data.checksum, space=space.name, weights=space.weights_sha256)
    return Features(found.n, **tensors)


# %%
first = reference(data, cells)
kept, = (Path(home.name)/'data'/'cache'/'references').glob('*.safetensors')
stamp = kept.stat().st_mtime_ns
assert torch.equal(reference(data, cells).features, first.features)
test_eq(kept.stat().st_mtime_ns, stamp)                                  # read, not computed
raw = bytearray(kept.read_bytes())
raw[-1] ^= 1                                                             # one bit of one number
kept.write_bytes(raw)
test_stdout(lambda: reference(data, cells), f'{kept.resolve()} differs from its checksum; computing it again')
assert torch.equal(reference(data, cells).cov, first.cov)


# %% [markdown]
# Papers' references are also published as files, EDM's as `.npz` with `mu` and `sigma`. They hold no features of single images, so only Fréchet
# distances can be taken against them.

# %%
#| export
def read_statistics(
    path,        # `.npz` with the arrays `mu` (f,) and `sigma` (f,f), as EDM publishes them
)->Features:     # its `n` is 0: the file does not say
    "Mean and covariance from a published file"
    if not Path(path).is_file(): raise FileNotFoundError(f'{path}: no such file, expected an .npz with mu and sigma')
    try:
        with np.load(path, allow_pickle=False) as f: mu,cov = (torch.from_numpy(f[k].astype(np.float64)) for k in ('mu','sigma'))
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, zlib.error, zipfile.BadZipFile) as e:
        raise ValueError(f"{path}: expected an .npz with the arrays mu and sigma ({str(e).splitlines()[0] if str(e) else type(e).__name__})") from None
    if mu.ndim != 1 or cov.shape != (len(mu), len(mu)): raise ValueError(f'{path}: mu of shape {tuple(mu.shape)} and sigma of shape {tuple(cov.shape)}, expected (f,) and (f,f)')
    if not (mu.isfinite().all() and cov.isfinite().all() and torch.allclose(cov, cov.T) and (cov.diagonal() >= 0).all()):
        raise ValueError(f'{path}: sigma is no covariance: expected finite numbers, symmetric, nothing negative on the diagonal')
    return Features(0, mu, cov)


# %%
npz = Path(home.name)/'edm.npz'
def stored(**arrays): np.savez(npz, **arrays); return npz

published = read_statistics(stored(mu=first.mu.numpy(), sigma=first.cov.numpy()))
assert_close(compare(cells, part, published)['fd_cells'], compare(cells, part, first)['fd_cells'])
test_fail(lambda: compare(cells, part, read_statistics(stored(mu=np.zeros(3), sigma=np.eye(3)))), contains='was it made in another space?')
for arrays,said in ((dict(mu=np.zeros(3)), 'expected an .npz with the arrays'), (dict(mu=np.zeros(3), sigma=np.eye(2)), 'expected (f,) and (f,f)'),
                    (dict(mu=np.zeros(2), sigma=np.array([[1.,2.],[0.,1.]])), 'no covariance'), (dict(mu=np.array([{}], object), sigma=np.eye(1)), 'expected an .npz')):
    test_fail(lambda: read_statistics(stored(**arrays)), contains=said)
npz.write_bytes(b'PK broken')
test_fail(lambda: read_statistics(npz), contains='expected an .npz')
test_fail(lambda: read_statistics('nowhere.npz'), contains='no such file')


# %% [markdown]
# ## The protocol
#
# EDM's protocol, which later papers keep: 50,000 images of the seeds 0 to 49,999, another 50,000 of the next seeds, and once more; the
# smallest of the three values is what EDM reports. Here all three are kept, their mean is the value, and the smallest has a name of its own (`fid50k_min`).

# %%
#| export
def counted(
    name:str, # 'fid', 'fd_dinov2'
    n:int,    # generated images
)->str:       # 'fid50k', 'fd_dinov2_5k'
    "The name of a value with its image count"
    return f"{name}{'_'*name[-1].isdigit()}{f'{n//1000}k' if n % 1000 == 0 else n}"


# %%
test_eq([counted('fid', 50_000), counted('fid', 5_000), counted('fd_dinov2', 50_000), counted('kid', 1_797)], ['fid50k', 'fid5k', 'fd_dinov2_50k', 'kid1797'])


# %%
#| export
def real_features(
    data:Images|None, # None: published statistics alone
    space:Space,
    path=None,        # published statistics (`read_statistics`); they decide the Fréchet distance
)->Features:
    "What samples are held against in a space"
    if data is None and path is None: raise ValueError(f"nothing to hold the samples against in '{space.name}': give real images or a file of their statistics")
    if path is None: return reference(data, space)
    published = read_statistics(path)
    return published if data is None else replace(reference(data, space), mu=published.mu, cov=published.cov)

def recipe(
    space:Space,
    real:Features,
    data:Images|None,
    path=None,        # published statistics
)->dict:              # plain data
    "How values of a space were measured"
    said = dict(extractor=space.extractor, layer=space.layer, measures=[m for m,_ in space.measures], resize=space.resize,
        weights=space.file, weights_sha256=space.weights_sha256[:16], identity=space.identity,
        reference=dict(data=data and data.name, checksum=data and data.checksum[:16], images=real.n, images_compared=0 if real.features is None else len(real.features)))
    if path is not None: said['reference'] |= dict(statistics=Path(path).name, statistics_sha256=sha256_of(Path(path))[:16])
    return said


# %%
#| export
def protocol_values(
    generate,               # called with a `range` of seeds; yields their images in uint8 batches (b,c,h,w), on any device
    data:Images|None,       # what they should look like; None: only `statistics` are at hand
    spaces,                 # of `Space`
    n:int=50_000,           # images per block of seeds
    blocks:int=3,           # of seeds: 0 to n-1, n to 2n-1, ...
    statistics:dict={},     # name of a space -> `.npz` of published statistics
    **about,                # plain data on the samples (`ema`, `nfe`, weights), kept in the protocol
)->tuple:                   # counted name -> value, mean over blocks (and `_min`, the smallest); protocol, with each block's value
    "Measure a generator by the spaces of the literature"
    if not 10 <= n <= KEEP: raise ValueError(f'n is {n}, expected 10 to {KEEP} images per block')
    real = {s.name:real_features(data, s, statistics.get(s.name)) for s in spaces}
    rows = []
    for b in range(blocks):
        found = extract(exactly(generate(range(b*n, (b+1)*n)), n, data), spaces)
        rows.append({counted(k, n):v for s in spaces for k,v in compare(s, found[s.name], real[s.name]).items()})
    each = {k:[r[k] for r in rows] for k in rows[0]}
    values = {k:sum(v)/len(v) for k,v in each.items()} | ({f'{k}_min':min(v) for k,v in each.items()} if blocks > 1 else {})
    return values, dict(tool='torch-fidelity', version=version('torch-fidelity'), torch=torch.__version__, n=n, seeds=[f'{b*n}-{(b+1)*n-1}' for b in range(blocks)],
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu', dtype='float32, moments float64', images='uint8',
        kid=dict(subsets=100, subset_size=min(1000, n), seed=2020), neighbours=3, is_parts=10,
        spaces={s.name:recipe(s, real[s.name], data, statistics.get(s.name)) for s in spaces}, samples=about, each=each)

def exactly(
    batches,          # of uint8 images
    n:int,            # how many there should be
    data:Images|None, # of which shape
):                    # the same batches
    "Refuse batches that are not as many images as announced, or of another shape"
    seen = 0
    for batch in batches:
        if data is not None and tuple(batch.shape[1:]) != data.shape: raise ValueError(f'generated images of shape {tuple(batch.shape[1:])}, and real ones of shape {data.shape}: sizes must agree')
        seen += len(batch)
        if seen <= n: yield batch
    if seen != n: raise ValueError(f'{seen} images were generated for {n} seeds, expected one for each')


# %% [markdown]
# A "generator" that returns noisy digits, the same for the same seed.

# %%
def noisy(level):
    def generate(seeds):
        for start in range(seeds.start, seeds.stop, 100):
            gen = torch.Generator().manual_seed(start)
            idx = torch.randint(data.n, (100,), generator=gen)
            yield (data.images[idx] + level*torch.randn((100,1,8,8), generator=gen)).clamp(0, 255).to(torch.uint8)
    return generate

values,protocol = protocol_values(noisy(20), data, [cells, contrasts], n=500, blocks=3, ema=True, nfe=1)
print({k:round(v, 4) for k,v in values.items()})
test_eq(list(values)[:5], ['fd_cells500', 'kid_cells500', 'precision_cells500', 'recall_cells500', 'fd_contrasts500'])
test_eq(values['fd_cells500_min'], min(protocol['each']['fd_cells500']))
test_eq(protocol['seeds'], ['0-499', '500-999', '1000-1499'])
test_eq((protocol['version'], protocol['samples'], protocol['spaces']['cells']['reference']['images']), (version('torch-fidelity'), dict(ema=True, nfe=1), 1797))
test_eq(json.loads(json.dumps(protocol)), protocol)                      # plain data
worse,_ = protocol_values(noisy(60), data, [contrasts], n=500, blocks=1)
test_eq(list(worse), ['fd_contrasts500'])
assert worse['fd_contrasts500'] > 2*values['fd_contrasts500']

# %%
test_fail(lambda: protocol_values(lambda seeds: [data.images[:90]], data, [cells], n=100), contains='90 images were generated for 100 seeds')
test_fail(lambda: protocol_values(noisy(1), RGB, [cells], n=100), contains='sizes must agree')
test_fail(lambda: protocol_values(noisy(1), data, [cells], n=100_000), contains='expected 10 to 50000')
test_fail(lambda: protocol_values(noisy(1), None, [cells], n=100), contains='give real images')
alone,_ = protocol_values(noisy(20), None, [cells], n=500, blocks=1, statistics={'cells':stored(mu=first.mu.numpy(), sigma=first.cov.numpy())})
test_eq(list(alone), ['fd_cells500'])
assert_close(alone['fd_cells500'], protocol['each']['fd_cells500'][0])


# %% [markdown]
# ## Judges or spaces
#
# A tier is judged either by small classifiers of its own data (`gdpt.metrics`) or by these spaces. The rest of the library asks three questions, and
# does not care which: what do samples score, what do real images score, and what is the value called that plays a certain part? Rows carry the true
# names, `fid50k` in one tier and `fd` in another; studies ask for the parts.

# %%
#| export
def judged(
    judges,         # of `gdpt.judges.Judge`, or of `Space`
    generate,       # as in `protocol_values`
    data:Images,
    n:int,          # images per block
    blocks:int=1,   # of seeds
    **about,        # as in `protocol_values`
)->tuple:           # metric -> value; protocol, empty for judges
    "Samples against data, by whatever judges them"
    if isinstance(judges[0], Space): return protocol_values(generate, data, judges, n, blocks, **about)
    return measure(torch.cat(list(generate(range(n)))), data, judges), {}

def parts_played(
    judges,         # of `gdpt.judges.Judge`, or of `Space`
    n:int,          # images per block
)->dict:            # part ('fd', 'fd_alt', 'fd_pix', 'kid', 'precision', 'recall') -> metric
    "Which value plays which part: the first space decides, the second can object, the third stands by"
    fds = [m for s in judges for m,what in s.measures if what == 'fd'] if isinstance(judges[0], Space) else []
    if not fds: return {m:m for m in ('fd','fd_alt','fd_pix','kid','precision','recall')}
    first = {what:m for m,what in judges[0].measures if what in ('kid','precision','recall')}
    return {part:counted(m, n) for part,m in {**dict(zip(('fd','fd_alt','fd_pix'), fds)), **first}.items()}


# %%
test_eq(parts_played([inception, clip, dinov2], 50_000), {'fd':'fid50k', 'fd_alt':'clip_fid50k', 'fd_pix':'fd_dinov2_50k', 'kid':'kid50k', 'precision':'precision50k', 'recall':'recall50k'})
test_eq(judged([contrasts], noisy(20), data, 500)[0], worse | {'fd_contrasts500':protocol['each']['fd_contrasts500'][0]})


# %% [markdown]
# The floors are those of `gdpt.metrics.floors`: random halves of the real images against each other, and real images drawn with replacement, as many as are
# judged, against all of them.

# %%
#| export
def chosen(
    f:Features,
    idx:torch.Tensor, # rows
)->Features:
    "The features of some images only"
    moments = Moments()
    moments.add(f.features[idx])
    return Features(len(idx), *moments.mean_cov(), f.features[idx], None if f.logits is None else f.logits[idx])

def judged_floors(
    judges,         # of `gdpt.judges.Judge`, or of `Space`
    data:Images,
    n:int,          # images per block
    repeats:int,    # halvings, and bootstraps
    blocks:int=1,   # of seeds, as the values have
)->dict:            # 'half' and 'bootstrap': metric -> `repeats` values
    "What real images score against real images"
    if not isinstance(judges[0], Space): return floors(data, judges, n, repeats)
    real,m = {s:reference(data, s) for s in judges},min(data.n, KEEP)
    score = lambda a,b=None: {counted(k, n):v for s,f in real.items() for k,v in compare(s, chosen(f, a), f if b is None else chosen(f, b)).items()}
    rows = {'half':[], 'bootstrap':[]}
    for i in range(repeats):
        order = torch.randperm(m, generator=keyed_generator('floor half', i))
        rows['half'].append(score(order[:m//2], order[m//2:]))
        rows['bootstrap'].append(score(torch.randint(m, (n,), generator=keyed_generator('floor bootstrap', i))))
    ends = ('','_min')[:1 + (blocks > 1)]      # the smallest of several blocks has the same floor
    return {arm:{k + end:[r[k] for r in found] for k in found[0] for end in ends} for arm,found in rows.items()}


# %%
chance = judged_floors([cells, contrasts], data, n=500, repeats=3, blocks=2)
values,_ = judged([cells, contrasts], noisy(20), data, n=500, blocks=2)
test_eq({*values}, {*chance['bootstrap']})
assert max(chance['bootstrap']['fd_contrasts500']) < values['fd_contrasts500']
test_eq(chance['half']['fd_cells500_min'], chance['half']['fd_cells500'])
print({k:round(sum(v)/len(v), 4) for k,v in chance['bootstrap'].items() if not k.endswith('_min')})

# %%
#| hide
home.cleanup()
del os.environ['GDPT_ROOT']
