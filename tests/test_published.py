"Published checkpoints: pickles of EDM's form, written by stand-ins for EDM's classes in a process of their own, read here without them"
import io
import os
import pickle
import random
import struct
import sys
import time
import zipfile
from dataclasses import replace

import pytest
import torch
from conftest import run
from gdpt.checkpoints import convert, load_denoiser
from gdpt.pickles import LIMIT, MAGIC, read_pickle
from gdpt.published import fetch, sha256_of
from gdpt.tiers import NetConfig, read_config
from gdpt.unet import make_net

# Stand-ins: the module paths, class names, attributes and parameter names of EDM's format, with code of our own. The forward passes are a plain transcription of
# the networks (Karras et al. 2022, Appendix F and Table 1) that shares nothing with gdpt.unet, and give the outputs that gdpt must reproduce.
STANDINS = {
'dnnlib/__init__.py': 'from .util import EasyDict\n',
'dnnlib/util.py': '''
class EasyDict(dict):
    def __getattr__(self, name): return self[name]
''',
'torch_utils/__init__.py': '',
'torch_utils/persistence.py': '''
import copy
def _reconstruct_persistent_obj(meta): raise RuntimeError('must never be called')
def persistent_class(cls):
    class Persistent(cls):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._init_args,self._init_kwargs = copy.deepcopy(args),copy.deepcopy(kwargs)
        def __reduce__(self):
            state = object.__reduce__(self)[2]
            return _reconstruct_persistent_obj, (dict(type='class', version=6, module_src='raise SystemExit("source was run")', class_name=type(self).__name__, state=state),), None
    Persistent.__name__ = cls.__name__
    return Persistent
''',
'training/__init__.py': '',
'training/networks.py': '''
import math
import torch
from torch import nn
from torch.nn import functional as F
from torch_utils.persistence import persistent_class as saved

@saved
class Linear(nn.Module):
    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        self.in_features,self.out_features = in_features,out_features
        self.weight,self.bias = nn.Parameter(torch.randn(out_features, in_features)),nn.Parameter(torch.randn(out_features)) if bias else None
    def forward(self, x): return x @ self.weight.T + (0 if self.bias is None else self.bias)

@saved
class Conv2d(nn.Module):
    def __init__(self, in_channels, out_channels, kernel, up=False, down=False, resample_filter=[1,1], fused_resample=False):
        super().__init__()
        self.in_channels,self.out_channels,self.up,self.down,self.fused_resample = in_channels,out_channels,up,down,fused_resample
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.randn(out_channels)) if kernel else None
        f = torch.tensor(resample_filter, dtype=torch.float32)
        self.register_buffer('resample_filter', (torch.outer(f, f)/f.sum()**2)[None,None] if up or down else None)
    def forward(self, x):
        # each channel by itself, with explicit zeros: up by spreading the pixels, down by keeping every other one
        n,c,h,w = x.shape
        low = lambda x,f,pad: F.conv2d(F.pad(x.flatten(0, 1)[:,None], pad), f).unflatten(0, (n, -1))[:,:,0]
        if self.fused_resample:
            k = self.resample_filter.shape[-1]
            x = F.conv2d(x, self.weight, self.bias, padding=1 + (k-1)//2)
            return low(x, self.resample_filter, (0,0,0,0))[:,:,::2,::2]
        if self.up:
            k = self.resample_filter.shape[-1]
            wide = torch.zeros(n, c, 2*h, 2*w)
            wide[:,:,::2,::2] = x
            x = low(wide, 4*self.resample_filter.flip(-1, -2), (k//2, k//2-1)*2)
        if self.down:
            k = self.resample_filter.shape[-1]
            x = low(x, self.resample_filter, ((k-1)//2,)*4)[:,:,::2,::2]
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1]//2)

@saved
class GroupNorm(nn.Module):
    def __init__(self, num_channels, eps=1e-5):
        super().__init__()
        self.num_groups,self.eps = min(32, num_channels//4),eps
        self.weight,self.bias = nn.Parameter(torch.ones(num_channels)),nn.Parameter(torch.zeros(num_channels))
    def forward(self, x):
        g = x.reshape(len(x), self.num_groups, -1)
        g = (g - g.mean(2, keepdim=True))/(g.var(2, unbiased=False, keepdim=True) + self.eps).sqrt()
        return g.reshape(x.shape)*self.weight[:,None,None] + self.bias[:,None,None]

@saved
class UNetBlock(nn.Module):
    def __init__(self, in_channels, out_channels, emb_channels, up=False, down=False, attention=False, num_heads=None, dropout=0, skip_scale=1, eps=1e-5, resample_filter=[1,1],
                 resample_proj=False, adaptive_scale=True):
        super().__init__()
        self.in_channels,self.out_channels,self.skip_scale,self.adaptive_scale,self.dropout = in_channels,out_channels,skip_scale,adaptive_scale,dropout
        self.num_heads = (num_heads or out_channels//64) if attention else 0
        move = dict(up=up, down=down, resample_filter=resample_filter)
        self.norm0,self.conv0 = GroupNorm(num_channels=in_channels, eps=eps),Conv2d(in_channels, out_channels, 3, **move)
        self.affine = Linear(in_features=emb_channels, out_features=out_channels*(2 if adaptive_scale else 1))
        self.norm1,self.conv1 = GroupNorm(num_channels=out_channels, eps=eps),Conv2d(out_channels, out_channels, 3)
        self.skip = None
        if up or down or in_channels != out_channels: self.skip = Conv2d(in_channels, out_channels, 1 if resample_proj or in_channels != out_channels else 0, **move)
        if self.num_heads: self.norm2,self.qkv,self.proj = GroupNorm(num_channels=out_channels, eps=eps),Conv2d(out_channels, 3*out_channels, 1),Conv2d(out_channels, out_channels, 1)
    def forward(self, x, emb):
        shortcut = x if self.skip is None else self.skip(x)
        x,e = self.conv0(F.silu(self.norm0(x))),self.affine(emb)[:,:,None,None]
        if self.adaptive_scale:
            c = self.out_channels
            x = self.norm1(x)*(1 + e[:,:c]) + e[:,c:]
        else: x = self.norm1(x + e)
        x = (self.conv1(F.silu(x)) + shortcut)*self.skip_scale
        if self.num_heads:
            n,c,h,w = x.shape
            q,k,v = self.qkv(self.norm2(x)).reshape(n, self.num_heads, c//self.num_heads, 3, h*w).permute(3, 0, 1, 4, 2)   # each (n, heads, pixels, c/heads)
            a = (torch.einsum('nhqc,nhkc->nhqk', q, k)/math.sqrt(c//self.num_heads)).softmax(-1)
            a = torch.einsum('nhqk,nhkc->nhcq', a, v).reshape(n, c, h, w)
            x = (self.proj(a) + x)*self.skip_scale
        return x

@saved
class PositionalEmbedding(nn.Module):
    def __init__(self, num_channels, endpoint=False):
        super().__init__()
        self.num_channels,self.endpoint = num_channels,endpoint
    def forward(self, x):
        half = self.num_channels//2
        f = torch.tensor([10000.**(-i/(half - (1 if self.endpoint else 0))) for i in range(half)])
        return torch.cat([torch.cos(x[:,None]*f), torch.sin(x[:,None]*f)], 1)

@saved
class FourierEmbedding(nn.Module):
    def __init__(self, num_channels):
        super().__init__()
        self.register_buffer('freqs', torch.randn(num_channels//2)*16)
    def forward(self, x): return torch.cat([torch.cos(2*math.pi*x[:,None]*self.freqs), torch.sin(2*math.pi*x[:,None]*self.freqs)], 1)

@saved
class SongUNet(nn.Module):
    def __init__(self, img_resolution, in_channels, out_channels, label_dim=0, augment_dim=0, model_channels=128, channel_mult=[1,2,2,2], channel_mult_emb=4, num_blocks=4,
                 attn_resolutions=[16], dropout=.1, label_dropout=0, embedding_type='positional', channel_mult_noise=1, encoder_type='standard', decoder_type='standard', resample_filter=[1,1]):
        super().__init__()
        emb,noise = model_channels*channel_mult_emb,model_channels*channel_mult_noise
        kw = dict(emb_channels=emb, num_heads=1, dropout=dropout, skip_scale=.5**.5, eps=1e-6, resample_filter=resample_filter, resample_proj=True, adaptive_scale=False)
        self.label_dropout,self.label_dim = label_dropout,label_dim
        self.map_noise = PositionalEmbedding(num_channels=noise, endpoint=True) if embedding_type == 'positional' else FourierEmbedding(num_channels=noise)
        self.map_label = Linear(in_features=label_dim, out_features=noise) if label_dim else None
        self.map_augment = Linear(in_features=augment_dim, out_features=noise, bias=False) if augment_dim else None
        self.map_layer0,self.map_layer1 = Linear(in_features=noise, out_features=emb),Linear(in_features=emb, out_features=emb)
        self.enc,self.dec = nn.ModuleDict(),nn.ModuleDict()
        c,aux,widths = in_channels,in_channels,[]
        for level,mult in enumerate(channel_mult):
            r = f'{img_resolution >> level}x{img_resolution >> level}'
            if level == 0: self.enc[f'{r}_conv'],c = Conv2d(c, model_channels, 3),model_channels
            else:
                self.enc[f'{r}_down'] = UNetBlock(c, c, down=True, **kw)
                if encoder_type == 'residual': self.enc[f'{r}_aux_residual'],aux = Conv2d(aux, c, 3, down=True, resample_filter=resample_filter, fused_resample=True),c
            widths.append(c)
            for i in range(num_blocks):
                self.enc[f'{r}_block{i}'] = UNetBlock(c, model_channels*mult, attention=(img_resolution >> level) in attn_resolutions, **kw)
                c = model_channels*mult
                widths.append(c)
        last = len(channel_mult)-1
        for level in range(last, -1, -1):
            r = f'{img_resolution >> level}x{img_resolution >> level}'
            if level == last: self.dec[f'{r}_in0'],self.dec[f'{r}_in1'] = UNetBlock(c, c, attention=True, **kw),UNetBlock(c, c, **kw)
            else: self.dec[f'{r}_up'] = UNetBlock(c, c, up=True, **kw)
            for i in range(num_blocks+1):
                self.dec[f'{r}_block{i}'] = UNetBlock(c+widths.pop(), model_channels*channel_mult[level], attention=i == num_blocks and (img_resolution >> level) in attn_resolutions, **kw)
                c = model_channels*channel_mult[level]
            if decoder_type == 'skip' or level == 0:
                if decoder_type == 'skip' and level < last: self.dec[f'{r}_aux_up'] = Conv2d(out_channels, out_channels, 0, up=True, resample_filter=resample_filter)
                self.dec[f'{r}_aux_norm'],self.dec[f'{r}_aux_conv'] = GroupNorm(num_channels=c, eps=1e-6),Conv2d(c, out_channels, 3)
    def forward(self, x, noise_labels, class_labels):
        e = self.map_noise(noise_labels)
        half = e.shape[1]//2
        e = torch.cat([e[:,half:], e[:,:half]], 1)
        if self.map_label is not None: e = e + self.map_label(class_labels*math.sqrt(self.label_dim))
        e = F.silu(self.map_layer1(F.silu(self.map_layer0(e))))
        maps,aux = [],x
        for k,layer in self.enc.items():
            if 'aux_residual' in k:
                x = aux = (x + layer(aux))/math.sqrt(2)
                maps[-1] = x
                continue
            x = layer(x) if k.endswith('_conv') else layer(x, e)
            maps.append(x)
        image = None
        for k,layer in self.dec.items():
            if k.endswith('aux_up'): image = layer(image)
            elif k.endswith('aux_norm'): normed = layer(x)
            elif k.endswith('aux_conv'): image = layer(F.silu(normed)) + (0 if image is None else image)
            else: x = layer(torch.cat([x, maps.pop()], 1) if 'block' in k else x, e)
        return image

@saved
class DhariwalUNet(nn.Module):
    def __init__(self, img_resolution, in_channels, out_channels, label_dim=0, augment_dim=0, model_channels=192, channel_mult=[1,2,3,4], channel_mult_emb=4, num_blocks=3,
                 attn_resolutions=[32,16,8], dropout=.1, label_dropout=0):
        super().__init__()
        emb = model_channels*channel_mult_emb
        kw = dict(emb_channels=emb, dropout=dropout)
        self.map_noise = PositionalEmbedding(num_channels=model_channels)
        self.map_augment = Linear(in_features=augment_dim, out_features=model_channels, bias=False) if augment_dim else None
        self.map_layer0,self.map_layer1 = Linear(in_features=model_channels, out_features=emb),Linear(in_features=emb, out_features=emb)
        self.map_label = Linear(in_features=label_dim, out_features=emb, bias=False) if label_dim else None
        self.enc,self.dec,widths = nn.ModuleDict(),nn.ModuleDict(),[]
        c = in_channels
        for level,mult in enumerate(channel_mult):
            size = img_resolution >> level
            if level == 0: self.enc[f'{size}x{size}_conv'],c = Conv2d(c, model_channels*mult, 3),model_channels*mult
            else: self.enc[f'{size}x{size}_down'] = UNetBlock(c, c, down=True, **kw)
            widths.append(c)
            for i in range(num_blocks):
                self.enc[f'{size}x{size}_block{i}'],c = UNetBlock(c, model_channels*mult, attention=size in attn_resolutions, **kw),model_channels*mult
                widths.append(c)
        for level in reversed(range(len(channel_mult))):
            size = img_resolution >> level
            if level == len(channel_mult)-1: self.dec[f'{size}x{size}_in0'],self.dec[f'{size}x{size}_in1'] = UNetBlock(c, c, attention=True, **kw),UNetBlock(c, c, **kw)
            else: self.dec[f'{size}x{size}_up'] = UNetBlock(c, c, up=True, **kw)
            for i in range(num_blocks+1):
                self.dec[f'{size}x{size}_block{i}'] = UNetBlock(c+widths.pop(), model_channels*channel_mult[level], attention=size in attn_resolutions, **kw)
                c = model_channels*channel_mult[level]
        self.out_norm,self.out_conv = GroupNorm(num_channels=c),Conv2d(c, out_channels, 3)
    def forward(self, x, noise_labels, class_labels):
        e = self.map_layer1(F.silu(self.map_layer0(self.map_noise(noise_labels))))
        e = F.silu(e if self.map_label is None else e + self.map_label(class_labels))
        maps = []
        for k,layer in self.enc.items():
            x = layer(x) if k.endswith('_conv') else layer(x, e)
            maps.append(x)
        for k,layer in self.dec.items(): x = layer(torch.cat([x, maps.pop()], 1) if 'block' in k else x, e)
        return self.out_conv(F.silu(self.out_norm(x)))

class Precond(nn.Module):
    def __init__(self, img_resolution, img_channels, label_dim=0, use_fp16=False, model_type='SongUNet', outputs=1, **kwargs):
        super().__init__()
        self.img_resolution,self.img_channels,self.label_dim,self.use_fp16 = img_resolution,img_channels,label_dim,use_fp16
        self.model = globals()[model_type](img_resolution=img_resolution, in_channels=img_channels, out_channels=img_channels*outputs, label_dim=label_dim, **kwargs)
    def net(self, x, c_noise, labels): return self.model(x, c_noise, labels)[:,:self.img_channels]

@saved
class EDMPrecond(Precond):
    def __init__(self, *args, sigma_min=0, sigma_max=float('inf'), sigma_data=.5, **kwargs):
        super().__init__(*args, **kwargs)
        self.sigma_min,self.sigma_max,self.sigma_data = sigma_min,sigma_max,sigma_data
    def forward(self, x, s, labels):
        d,t = self.sigma_data,s[:,None,None,None]
        return x*d*d/(t*t + d*d) + self.net(x/(t*t + d*d).sqrt(), s.log()/4, labels)*t*d/(t*t + d*d).sqrt()

@saved
class VPPrecond(Precond):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.beta_d,self.beta_min,self.M,self.epsilon_t = 19.9,.1,1000,1e-5
    def forward(self, x, s, labels):
        lo,hi = torch.zeros_like(s).double(),torch.full_like(s, 2).double()               # the inverse of sigma(t), by bisection
        for _ in range(60):
            t = (lo + hi)/2
            above = ((t*t*19.9/2 + .1*t).exp() - 1).sqrt() > s
            lo,hi = torch.where(above, lo, t),torch.where(above, t, hi)
        return x - s[:,None,None,None]*self.net(x/(s*s + 1).sqrt()[:,None,None,None], (999*lo).float(), labels)

@saved
class VEPrecond(Precond):
    def __init__(self, *args, sigma_min=.02, sigma_max=100, **kwargs):
        super().__init__(*args, **kwargs)
        self.sigma_min,self.sigma_max = sigma_min,sigma_max
    def forward(self, x, s, labels): return x + s[:,None,None,None]*self.net(x, (s*.5).log(), labels)

@saved
class iDDPMPrecond(Precond):
    def __init__(self, *args, C_1=.001, C_2=.008, M=1000, **kwargs):
        super().__init__(*args, outputs=2, **kwargs)
        self.C_1,self.C_2,self.M = C_1,C_2,M
        u = torch.zeros(M+1)
        bar = lambda j: math.sin(.5*math.pi*j/M/(C_2+1))**2
        for j in range(M, 0, -1): u[j-1] = ((u[j]**2 + 1)/max(bar(j-1)/bar(j), C_1) - 1).sqrt()
        self.register_buffer('u', u)
    def forward(self, x, s, labels):
        step = torch.tensor([min(range(self.M+1), key=lambda j: abs(self.u[j].item() - v)) for v in s.tolist()])
        return x - s[:,None,None,None]*self.net(x/(s*s + 1).sqrt()[:,None,None,None], (self.M-1 - step).float(), labels)

@saved
class OneStepGenerator(EDMPrecond):
    def forward(self, x, s, labels):
        d,t,a = self.sigma_data,s[:,None,None,None],s[:,None,None,None] - .002
        return x*d*d/(a*a + d*d) + self.net(x/(t*t + d*d).sqrt(), s.log()/4, labels)*a*d/(t*t + d*d).sqrt()
''',
'write.py': '''
import pickle, sys
import torch
import dnnlib
from training import networks as N
torch.manual_seed(0)
size = dict(img_resolution=16, img_channels=3, model_channels=16, channel_mult_emb=2, num_blocks=1)
ddpmpp = dict(size, embedding_type='positional', encoder_type='standard', decoder_type='standard', channel_mult_noise=1, resample_filter=[1,1], channel_mult=[2,2,2], attn_resolutions=[8], dropout=.13, augment_dim=9)
ncsnpp = dict(ddpmpp, embedding_type='fourier', encoder_type='residual', channel_mult_noise=2, resample_filter=[1,3,3,1])
adm = dict(size, model_type='DhariwalUNet', model_channels=32, channel_mult=[1,2,3,4], attn_resolutions=[8,4,2], dropout=.1, label_dim=7)
made = dict(cifar_vp=(N.EDMPrecond, ddpmpp), cifar_ve=(N.EDMPrecond, dict(ncsnpp, label_dim=10)), ffhq_vp=(N.EDMPrecond, dict(ddpmpp, channel_mult=[1,2,2,2])),
    ffhq_ve=(N.EDMPrecond, dict(ncsnpp, channel_mult=[1,2,2,2])), imagenet_adm=(N.EDMPrecond, adm), baseline_vp=(N.VPPrecond, dict(ddpmpp, augment_dim=0)),
    baseline_ve=(N.VEPrecond, dict(ncsnpp, augment_dim=0)), baseline_iddpm=(N.iDDPMPrecond, adm), d2o=(N.OneStepGenerator, dict(ncsnpp, label_dim=10)),
    skip=(N.EDMPrecond, dict(ncsnpp, decoder_type='skip')), narrow_adm=(N.EDMPrecond, dict(adm, model_channels=16)))
for i,(name,(cls,kwargs)) in enumerate(made.items()):
    net = cls(**kwargs).eval().requires_grad_(False)
    for k,p in net.named_parameters(): p.copy_(torch.randn_like(p)*(.1 if p.ndim < 2 else p[0].numel()**-.5) + ('norm' in k and k.endswith('weight')))
    x,sigma,label_dim = torch.randn(4, 3, 16, 16),torch.tensor([.01,.5,3.,80.]),kwargs.get('label_dim', 0)
    x = x*(1 + sigma[:,None,None,None])
    labels = torch.eye(label_dim)[torch.arange(4)] if label_dim else None
    torch.save(dict(x=x, sigma=sigma, labels=labels, out=net(x, sigma, labels), kwargs=kwargs, weights=dict(net.model.state_dict())), f'{name}.ref')
    data = dict(ema=net, loss_fn=N.Linear(2, 2), augment_pipe=None, dataset_kwargs=dict(dnnlib.EasyDict(path='cifar10.zip', use_labels=bool(label_dim))), extra=dnnlib.EasyDict(kimg=200000))
    with open(f'{name}.pkl', 'wb') as f: pickle.dump(data, f, protocol=[4, 4, 4, 5, 2, 3][i % 6])
with open('tiny.pkl', 'wb') as f: pickle.dump(dict(ema=N.Linear(2, 3), loss_fn=None, kw=dnnlib.EasyDict(a=1)), f)
''' }
NAMES = 'cifar_vp', 'cifar_ve', 'ffhq_vp', 'ffhq_ve', 'imagenet_adm', 'baseline_vp', 'baseline_ve', 'baseline_iddpm', 'd2o', 'skip', 'narrow_adm'


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('published')
    for name, source in STANDINS.items():
        (folder/name).parent.mkdir(exist_ok=True)
        (folder/name).write_text(source)
    run(sys.executable, 'write.py', cwd=folder, path=folder)
    return folder


def answers(denoiser, ref):
    labels = ref['labels']
    out = denoiser(ref['x'], ref['sigma'], labels)
    if labels is not None: assert denoiser(ref['x'], ref['sigma'], labels.argmax(1)).equal(out)
    for i, s in enumerate(ref['sigma']):  # relative to each noise level's own largest value
        torch.testing.assert_close(out[i], ref['out'][i], rtol=0, atol=1e-5*max(1., ref['out'][i].abs().max().item()), msg=lambda m: f'sigma {s}: {m}')
    return out


@pytest.mark.parametrize('name', NAMES)
def test_agrees_with_the_classes_that_wrote_it(files, name):
    ref = torch.load(files/f'{name}.ref', weights_only=True)
    denoiser = load_denoiser(files/f'{name}.pkl', precond='consistency' if name == 'd2o' else None)
    assert not {'torch_utils', 'dnnlib', 'training'} & set(sys.modules)
    ours = denoiser.net.state_dict()
    assert list(ours) and set(ours) == set(ref['weights'])
    if name != 'baseline_iddpm': assert all(t.equal(ours[k]) for k, t in ref['weights'].items())
    answers(denoiser, ref)
    assert ref['out'][2].std() > .1  # the reference says something


def test_convert_round_trip(files, tmp_path):
    denoiser = load_denoiser(files/'d2o.pkl', precond='consistency')
    folder = convert(files/'d2o.pkl', tmp_path/'d2o', precond='consistency', data='digits', tier='tiny')
    config = read_config(folder)
    assert (config.precond, config.sampler, config.sample_steps, config.source_sha256) == ('consistency', 'euler', 1, sha256_of(files/'d2o.pkl'))
    ref = torch.load(files/'d2o.ref', weights_only=True)
    assert answers(load_denoiser(folder), ref).equal(denoiser(ref['x'], ref['sigma'], ref['labels']))
    assert load_denoiser(folder/'snapshots'/'00000000.safetensors', precond='consistency')(ref['x'], 80., ref['labels']).equal(denoiser(ref['x'], 80., ref['labels']))


def test_samples_and_starting_point(files, tmp_path, monkeypatch):
    "What is converted is sampled like a run, and a generator can be tuned from it"
    from gdpt.runs import samples_of, starting_from, student_of
    from gdpt.tiers import get_tier
    monkeypatch.setenv('GDPT_ROOT', str(tmp_path))
    small = NetConfig(model_channels=16)
    torch.save({'G_ema': make_net(small).state_dict()}, tmp_path/'net.pt')
    folder = convert(tmp_path/'net.pt', tmp_path/'ours', precond='edm', sigma_data=.75, data='digits', tier='tiny', sample_steps=2)
    assert samples_of(folder, 3).shape == (3, 1, 8, 8)
    config = starting_from(replace(get_tier('tiny').arms['d2o'], net=small), folder)
    assert config.sigma_data == .75 and config.weights_checksum
    student_of(config, load_denoiser(folder))


class Call:
    "Pickles as a call"
    def __init__(self, f, *args): self.how = f, args
    def __reduce__(self): return self.how


def nested(payload):
    "A storage whose bytes are a file of torch.save with this after the magic number"
    return Call(torch.storage._load_from_bytes, pickle.dumps(MAGIC, 2) + payload)


def storage_bytes(numel, raw, kind=b'FloatStorage', key='0'):
    pid = b'\x80\x02(X\x07\x00\x00\x00storagectorch\n' + kind + b'\n' + pickle.dumps(key, 2)[2:-1] + b'X\x03\x00\x00\x00cpu' + pickle.dumps(numel, 2)[2:-1] + b'NtQ.'
    machine = dict(protocol_version=1001, little_endian=True, type_sizes={})
    return pickle.dumps(1001, 2) + pickle.dumps(machine, 2) + pid + pickle.dumps([key], 2) + struct.pack('<q', numel) + raw


def hostile(marker):
    touch = f'touch {marker}'
    rebuild = torch._utils._rebuild_tensor_v2
    good = nested(storage_bytes(2, b'\0'*8))
    tensor = lambda *args: pickle.dumps({'ema': Call(rebuild, good, *args)})
    deep = b']'*200_000 + b'a'*199_999 + b'.'
    yield from ((f'os.system, protocol {p}', pickle.dumps({'ema': Call(os.system, touch)}, p)) for p in range(6))
    yield 'eval', pickle.dumps(Call(eval, f'__import__("os").system("{touch}")'))
    yield 'exec of a source', pickle.dumps(Call(exec, f'import os; os.system("{touch}")'))
    yield 'getattr chain', pickle.dumps(Call(getattr, Call(__import__, 'os'), 'system'))
    yield 'dotted name', b'\x80\x04\x8c\x0ftorch.nn.modules\x8c\x16linear.os.system\x93\x8c\x02ls\x85R.'
    yield 'name of torch that runs', b'ctorch.nn.modules.utils\nimport_module\n(S"os"\ntR.'
    yield 'torch.load', b'ctorch\nload\n(S"x"\ntR.'
    yield 'INST', f'(S"{touch}"\nios\nsystem\n.'.encode()
    yield 'OBJ', f'(cos\nsystem\nS"{touch}"\no.'.encode()
    yield 'NEWOBJ_EX', b'\x80\x04ccollections\nOrderedDict\n)}\x92.'
    yield 'extension registry', b'\x82\x01.'
    yield 'persistent id', b'Pmine\n.'
    yield 'binary persistent id', b'K\x01Q.'
    yield 'out-of-band buffer', b'\x80\x05\x97.'
    yield 'nested os.system', pickle.dumps({'ema': Call(rebuild, nested(pickle.dumps(Call(os.system, touch))), 0, (1,), (1,))})
    yield 'nested in nested', pickle.dumps(nested(pickle.dumps(nested(b''))))
    yield 'storage shorter than it says', pickle.dumps(nested(storage_bytes(1 << 40, b'\0'*8)))
    yield 'negative storage', pickle.dumps(nested(storage_bytes(-4, b'')))
    yield 'storage of objects', pickle.dumps(nested(storage_bytes(1, b'\0'*8, b'ObjectStorage')))
    yield 'tensor beyond its storage', tensor(0, (3,), (1,))
    yield 'tensor before its storage', tensor(-1, (1,), (1,))
    yield 'endless tensor', tensor(0, (1 << 40, 1 << 20), (0, 0))
    yield 'overflowing tensor', tensor(0, (1 << 62, 1 << 62), (1, 1))
    yield 'tensor with a bool for a size', tensor(0, (True,), (1,))
    yield 'billion laughs', b'N' + b'2\x86'*3000 + b'.'
    yield 'billion laughs as a key', b'}N' + b'2\x86'*64 + b'Ns.'
    yield 'billion laughs as a member', b'\x8f(N' + b'2\x86'*64 + b'\x90.'
    yield 'billion laughs as a state', b'}X\x03\x00\x00\x00emactorch.nn.modules.linear\nLinear\n)\x81N' + b'2\x86'*64 + b'bs.'
    yield 'colliding keys', b'}(' + b''.join(b'\x8a\x14' + (i*(2**61-1) << 70).to_bytes(20, 'little') + b'N' for i in range(1000)) + b'u.'
    yield 'list in itself', b'}X\x03\x00\x00\x00ema]q\x00h\x00as.'
    yield 'dictionary in itself', b'}q\x00X\x03\x00\x00\x00emah\x00s.'
    yield 'module in itself', b'}X\x03\x00\x00\x00emactorch.nn.modules.linear\nLinear\n)\x81q\x00}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x00ssbs.'
    yield 'deep list', deep
    yield 'deep tuple', b')' + b'\x85'*300_000 + b'.'
    yield 'deep tuple as a state', b'ccollections\nOrderedDict\n)R)' + b'\x85'*300_000 + b'b.'
    yield 'endless loop of pushes', b'N'*(LIMIT + 10)
    yield 'marks', b'('*200_000
    yield 'huge LONG4', b'\x8b\xff\xff\xff\x7f\x01.'
    yield 'negative LONG4', b'\x8b\xff\xff\xff\xff\x01.'
    yield 'huge LONG', b'L' + b'9'*200_000 + b'L\n.'
    yield 'huge BINBYTES8', b'\x8e' + (2**63-1).to_bytes(8, 'little') + b'.'
    yield 'huger BINBYTES8', b'\x8e' + (2**64-1).to_bytes(8, 'little') + b'.'
    yield 'huge BYTEARRAY8', b'\x96' + (2**62).to_bytes(8, 'little') + b'.'
    yield 'huge frame', b'\x80\x04\x95' + (2**63).to_bytes(8, 'little') + b'N.'
    yield 'huge memo index', b'Nr\xff\xff\xff\xffp' + b'9'*4000 + b'\n.'
    yield 'unknown memo', b'h\x07.'
    yield 'empty stack', b'0.'
    yield 'no stop', b'N'
    yield 'nothing', b''
    yield 'protocol 200', b'\x80\xc8N.'
    yield 'bad text', b'X\x02\x00\x00\x00\xff\xfe.'
    yield 'bad escape', b"S'\\x'\n."
    yield 'zip', zipped({'data.pkl': pickle.dumps(Call(os.system, touch))})
    yield 'zip without', zipped({'a/other': b''})
    yield 'compressed zip', zipped({'a/data.pkl': pickle.dumps({})}, zipfile.ZIP_DEFLATED)
    yield 'zip with a call', zipped({'a/data.pkl': pickle.dumps(Call(os.system, touch))})
    yield 'zip with a missing storage', zipped({'a/data.pkl': storage_bytes(1, b'').split(pickle.dumps(['0'], 2))[0][-60:]})
    yield 'a picture', b'\x89PNG\r\n\x1a\n' + bytes(100)
    yield 'a page', b'<!DOCTYPE html><html></html>'


def zipped(entries, how=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', how) as z:
        for k, v in entries.items(): z.writestr(k, v)
    return out.getvalue()


def plain_weights(): return dict(make_net(NetConfig(channels=3, model_channels=16)).state_dict())


def unlikely():
    "Checkpoints that are well formed as files, and in which one thing is not what it should be"
    weights, last = plain_weights(), 'dec.8x8_aux_conv'
    for part in 'weight', 'bias': yield f'0-d {part}', {**weights, f'{last}.{part}': torch.tensor(1.)}
    yield '4999 blocks over 12 levels', {'enc.2048x2048_conv.weight': weights['enc.8x8_conv.weight'], **weights, **{f'enc.{2048 >> i}x{2048 >> i}_block0.conv1.weight': torch.ones(16, 16, 3, 3) for i in range(12)},
                                         **{f'enc.2048x2048_block{i}.conv1.weight': weights['enc.8x8_conv.bias'] for i in range(1, 4999)}}
    yield 'shared numbers', {**weights, 'map_layer1.bias': weights['map_layer0.bias']}
    yield 'whole numbers', {k: t.long() for k, t in weights.items()}
    yield 'names over lines', {f'{p}\n{k}': t for p in 'ab' for k, t in weights.items()}


@pytest.mark.parametrize('form', ['pt', 'pkl'])
def test_unlikely_checkpoints_are_refused(form, tmp_path):
    path = tmp_path/f'unlikely.{form}'
    for name, weights in unlikely():
        if form == 'pt': torch.save({'ema': weights}, path)
        else: path.write_bytes(pickle.dumps({'ema': weights}))
        try: refused(path, precond='edm')
        except BaseException as e: raise AssertionError(f'{name}: {type(e).__name__}: {e}') from e


WRITE = '''
import math, pickle, sys, torch
from training import networks as N
made = dict(img_resolution=8, img_channels=3, model_channels=16, channel_mult=[2,2], channel_mult_emb=2, num_blocks=1, attn_resolutions=[4], embedding_type='positional')
def write(name, cls=N.EDMPrecond, said={}, **state):
    net = cls(**made)
    net.__dict__.update(state)
    net._init_kwargs.update(said)
    with open(name + '.pkl', 'wb') as f: pickle.dump(dict(ema=net), f)
write('fine')
write('fine_vp', N.VPPrecond)
write('tensor_argument', said=dict(channel_mult=torch.ones(2)))
write('tensors_in_an_argument', said=dict(channel_mult=[torch.ones(2),torch.ones(2)]))
for i,wrong in enumerate((torch.ones(2), torch.tensor(19.9), None, 'many')): write(f'beta_{i}', N.VPPrecond, beta_d=wrong)
for i,wrong in enumerate((10**400, math.nan, math.inf, -.5, 0, torch.ones(2), torch.tensor(.5), 'half')): write(f'sigma_{i}', sigma_data=wrong)
'''


def test_objects_that_say_the_unlikely_are_refused(files, tmp_path):
    (tmp_path/'write_unlikely.py').write_text(WRITE)
    run(sys.executable, 'write_unlikely.py', cwd=tmp_path, path=files)
    found = sorted(tmp_path.glob('*.pkl'))
    assert len(found) == 16
    for path in found:
        if path.stem.startswith('fine'): load_denoiser(path)
        else: refused(path)


def refused(path, seconds=20, **options):
    "`load_denoiser` gives one line, as a ValueError, in time; anything else fails the test"
    start = time.process_time()
    with pytest.raises(ValueError) as e: load_denoiser(path, **options)
    assert time.process_time() - start < seconds
    assert '\n' not in str(e.value) and len(str(e.value)) < 600 and path.name in str(e.value)


def test_hostile_files_are_refused_and_never_run(tmp_path):
    marker, samples = tmp_path/'ran', dict(hostile(tmp_path/'ran'))
    for name, raw in samples.items():
        path = tmp_path/'hostile.pkl'
        path.write_bytes(raw)
        try: refused(path)
        except BaseException as e: raise AssertionError(f'{name}: {type(e).__name__}: {e}') from e
        assert not marker.exists(), name
    assert len(samples) > 60


def test_mutated_files_are_read_or_refused(files, tmp_path):
    "Bytes flipped, cut out, doubled, moved: the reader answers or says one line"
    rng, path = random.Random(0), tmp_path/'mutated.pkl'
    forms = [(files/'tiny.pkl').read_bytes()]
    for zip_form in True, False:
        torch.save({'ema': torch.nn.Linear(2, 3).state_dict()}, path, _use_new_zipfile_serialization=zip_form)
        forms.append(path.read_bytes())
    outcomes = {'read': 0, 'refused': 0}
    for whole in forms:
        for i in range(250):
            raw = bytearray(whole)
            for _ in range(rng.choice((1, 1, 2, 5))):
                at, n = rng.randrange(len(raw)), rng.choice((1, 1, 2, 9))
                how = rng.randrange(5)
                if how < 2: raw[at] = rng.randrange(256)
                elif how == 2: del raw[at:at+n]
                elif how == 3: raw[at:at] = raw[at:at+n]*rng.choice((1, 3))
                else: raw[at:at] = rng.choice((b'R', b'b', b'\x81', b'0', b'2', b'\x93', b'u', b'(', b'h\x05', b'\x86'))
                if not raw: raw += b'.'
            path.write_bytes(raw)
            try: read_pickle(path)
            except ValueError as e: assert '\n' not in str(e); outcomes['refused'] += 1
            else: outcomes['read'] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_truncated_files_are_refused(files, tmp_path):
    whole = (files/'tiny.pkl').read_bytes()
    for cut in range(0, len(whole), 7):
        (tmp_path/'cut.pkl').write_bytes(whole[:cut])
        refused(tmp_path/'cut.pkl')
    whole = (files/'cifar_ve.pkl').read_bytes()
    for part in .1, .5, .9, .999:
        (tmp_path/'cut.pkl').write_bytes(whole[:int(len(whole)*part)])
        refused(tmp_path/'cut.pkl')


def test_hub(monkeypatch, tmp_path):
    "A file of the hub comes through the hub's client and must have its checksum"
    import huggingface_hub
    (tmp_path/'net.pt').write_bytes(b'weights')
    asked = []
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', lambda repo, file: asked.append((repo, file)) or str(tmp_path/file.split('/')[-1]))
    assert fetch('hf://owner/name/sub/net.pt', sha256_of(tmp_path/'net.pt')) == tmp_path/'net.pt'
    assert asked == [('owner/name', 'sub/net.pt')]
    with pytest.raises(ValueError, match='not what it should be'): fetch('hf://owner/name/net.pt', 'ab'*32)
    with pytest.raises(ValueError, match='their checksum is needed'): fetch('hf://owner/name/net.pt', None)
