"The larger tiers, shrunk: from images (and checkpoints of EDM's form, and ImageNet networks) in files to tables, figures and verdicts"
import csv
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, run
from gdpt.tiers import PublishedConfig, get_tier
from test_published import STANDINS

timm = pytest.importorskip('timm')
WRITE = '''
import pickle, sys
import torch
from training import networks as N
torch.manual_seed(0)
kwargs = eval(sys.argv[1])
net = N.EDMPrecond(**kwargs).eval().requires_grad_(False)
for k,p in net.named_parameters(): p.copy_(torch.randn_like(p)*(.1 if p.ndim < 2 else p[0].numel()**-.5) + ('norm' in k and k.endswith('weight')))
with open(sys.argv[2], 'wb') as f: pickle.dump(dict(ema=net), f)
'''


def edm_arguments(net):
    "What EDM's class would have been called with"
    adm = net.arch == 'adm'
    own = dict(model_type='DhariwalUNet') if adm else dict(embedding_type='fourier', encoder_type='residual', decoder_type='standard', channel_mult_noise=2, resample_filter=[1,3,3,1])
    return dict(img_resolution=net.resolution, img_channels=net.channels, label_dim=net.label_dim, model_channels=net.model_channels, channel_mult=list(net.channel_mult),
                channel_mult_emb=net.channel_mult_emb, num_blocks=net.num_blocks, attn_resolutions=list(net.attn_resolutions), dropout=net.dropout, augment_dim=net.augment_dim, **own)


def project(root, tier):
    "A project whose images, checkpoints and feature networks are made up"
    from gdpt.checkpoints import save_tensors
    from gdpt.datasets import prepare
    for name in ('nbs/studies', 'profiles', 'gdpt'): shutil.copytree(ROOT/name, root/name, ignore=shutil.ignore_patterns('__pycache__'))
    (root/'data').mkdir()
    for name in ('settings.ini', 'Snakefile', 'data/reported.csv'): shutil.copy2(ROOT/name, root/name)
    published = [d for d in tier.denoisers.values() if isinstance(d, PublishedConfig)]
    for name, source in {**STANDINS, 'write.py':WRITE}.items():
        (root/'edm'/name).parent.mkdir(parents=True, exist_ok=True)
        (root/'edm'/name).write_text(source)
    (root/'data'/'published').mkdir()
    for d in published: run(sys.executable, 'write.py', repr(edm_arguments(d.net)), root/'data'/'published'/d.source, cwd=root/'edm', path=root/'edm')
    for name in tier.arms['d2o'].backbones if published else (): save_tensors(root/'data'/'backbones'/f'{name}.safetensors', timm.create_model(name).state_dict())
    net,rng,classes = tier.pretrain.net,np.random.default_rng(0),max(d.net.label_dim for d in tier.denoisers.values())
    n = max(300, classes)
    labels = dict(labels=np.arange(n) % classes) if classes else {}
    np.savez(root/'raw.npz', images=rng.integers(0, 256, (n, net.channels, net.resolution, net.resolution), dtype=np.uint8), **labels)
    prepare(root/'raw.npz', root/'data'/tier.pretrain.data)


def test_from_checkpoint_to_table(tmp_path, monkeypatch):
    from gdpt.__main__ import main
    from gdpt.studies import run_study
    monkeypatch.setenv('GDPT_ROOT', str(tmp_path))
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    tier = get_tier('paper-smoke')
    project(tmp_path, tier)
    run_study(tmp_path/'nbs'/'studies'/'d2o.ipynb', tmp_path/'d2o.ipynb', tier=tier.name, arms=['teacher', 'd2o_f'], seeds=[0])
    with open(next((tmp_path/'data'/'runs'/tier.name/'rows').glob('*d2o_f*.csv')), newline='') as f: rows = list(csv.DictReader(f))
    names = {r['metric'] for r in rows}
    assert {'fd_cells64', 'kid_cells64', 'precision_cells64', 'recall_cells64', 'fd_contrasts64'} == {m for m in names if not m.endswith('_min')} and 'fd_cells64_min' in names
    assert {r['nimg'] for r in rows} == {'64', '128'} and all(float(r['evaluations']) > 0 for r in rows)
    assert main(['results', '--tier', tier.name]) == 0
    assert '| d2o_f |' in (tmp_path/tier.results).read_text()


def test_small(tmp_path, monkeypatch):
    "Images of three colours from a prepared set: pre-training, D2O, a report"
    from gdpt.studies import run_study
    monkeypatch.setenv('GDPT_ROOT', str(tmp_path))
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    project(tmp_path, get_tier('small-smoke'))
    for study, how in (('d2o', dict(arms=['d2o'], seeds=[0])), ('pretraining', {})): run_study(tmp_path/'nbs'/'studies'/f'{study}.ipynb', tmp_path/f'{study}.ipynb', tier='small-smoke', **how)
    assert (tmp_path/'figures'/'small-smoke'/'pretraining.png').exists()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['small', 'paper', 'paper-ffhq64', 'paper-imagenet64'])
def test_every_study(name, tmp_path):
    "What `make reproduce STUDY=all SMOKE=1` does"
    tier = get_tier(f'{name}-smoke')
    project(tmp_path, tier)
    run(sys.executable, '-m', 'snakemake', '--cores', 2, '--nolock', '--quiet', 'host', 'reason', '--config', f'tier={name}', 'study=all', cwd=tmp_path, path=tmp_path, GDPT_ROOT=tmp_path, SMOKE='1')
    page, pictures = (tmp_path/tier.results).read_text(), {p.stem for p in (tmp_path/'figures'/tier.name).glob('*.png')}
    assert '| d2o_f |' in page and ('| cd_gan |' in page) == (name == 'small')
    assert pictures >= {'data_efficiency', 'gallery', 'spectrum_blocks', 'freezing', 'discriminators', 'state_of_the_art'}
    with open(tmp_path/'data'/tier.name/'verdicts.csv', newline='') as f: assert {r['claim'] for r in csv.DictReader(f)} == {f'C{i}' for i in range(1, 10)}      # papers report on all of these images
    if name == 'paper': assert '| d2o_f_cond |' in page and '| d2o_10step |' in page


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    from gdpt.runs import arm_run
    monkeypatch.setenv('GDPT_ROOT', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='edm-cifar10-32x32-uncond-ve.pkl is missing: put the published file of that name there'): arm_run(get_tier('paper'), 'd2o')
    assert not (tmp_path/'data'/'runs').exists()


def test_paper_networks_have_their_size():
    sizes = {'paper':56_397_827, 'paper-ffhq64':62_761_091, 'paper-imagenet64':295_899_267}      # PAPER.md section 4
    from gdpt.unet import frozen_fraction, frozen_names, make_net
    for name, size in sizes.items():
        config = get_tier(name).arms['d2o_f']
        with torch.device('meta'): net = make_net(config.net)
        assert sum(p.numel() for p in net.parameters()) == size
        shares = {'paper':.8440, 'paper-ffhq64':.8383, 'paper-imagenet64':.7877}
        assert abs(frozen_fraction(net, frozen_names(net, config.freeze)) - shares[name]) < 5e-5
