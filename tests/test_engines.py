"Several processes train as one does, to the last bit; nothing in a loss leaves the device it computes on"
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from gdpt import projected
from gdpt.augment import make_augment
from gdpt.checkpoints import load_tensors
from gdpt.runs import completed, make_objective, new_denoiser
from gdpt.data import load_images
from gdpt.objectives.denoising import Denoising
from gdpt.projected import open_backbone
from gdpt.tiers import get_tier
from gdpt.training import Batch, Draw, asking_for_gradients, modules_of
from processes import finish, team
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RUN = '--tier smoke --images 480 --batch-size 16 --shard-size 4 --snapshots 64 --seed 3'      # 30 steps of four shards, two log intervals


def launched(line):
    "A `gdpt` command on a team of two, started as a user would"
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m', 'gdpt', *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'GDPT_PROGRESS':'plain', 'OMP_NUM_THREADS':'1'})
    return done.returncode, done.stderr


def same(a, b, file):
    x, y = (load_tensors(folder/file)[0] for folder in (a, b))
    assert x.keys() == y.keys() and [k for k in x if not x[k].equal(y[k])] == [], file


@pytest.fixture(scope='module')
def denoiser(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pre')/'run'
    code, err = finish(f'pretrain --tier smoke --images 320 --out {folder}')
    assert code == 0, err
    return folder


@pytest.mark.parametrize('command, two', [pytest.param('pretrain', launched, marks=pytest.mark.slow), ('finetune', team), ('finetune --losses reuse.ReusedFakes', team)])
def test_two_processes_are_one(tmp_path, denoiser, command, two):
    line = f'{command} {RUN}' + f' --denoiser {denoiser}'*(command != 'pretrain')
    for name, how in (('one', finish), ('two', two)):
        code, err = how(f'{line} --out {tmp_path}/{name}')
        assert code == 0, err
    for file in 'state.safetensors', 'snapshots/00000064.safetensors', 'snapshots/00000480.safetensors': same(tmp_path/'one', tmp_path/'two', file)
    one, two = (json.loads((tmp_path/k/'DONE').read_text()) for k in ('one', 'two'))
    assert (one['processes'], two['processes']) == (1, 2) and one['evaluations'] == two['evaluations']


def test_two_go_on_where_one_was_killed(tmp_path, denoiser):
    line = f'finetune {RUN} --denoiser {denoiser}'
    code, err = finish(f'{line} --out {tmp_path}/one')
    assert code == 0, err
    assert finish(f'{line} --out {tmp_path}/cut', log_steps=25, dies_at=416)[0] == -signal.SIGKILL
    code, err = team(f'{line} --out {tmp_path}/cut')
    assert code == 0, err
    same(tmp_path/'one', tmp_path/'cut', 'state.safetensors')


def test_shards_that_cannot_be_shared(tmp_path):
    code, err = team(f'pretrain --tier smoke --images 640 --batch-size 16 --shard-size 16 --out {tmp_path}/run')
    assert code and '1 shards cannot be shared by 2 processes' in err
    assert not (tmp_path/'run'/'config.json').exists()


class Elsewhere(Draw):
    "Random numbers on torch's device of shapes without values: what mixes devices, or asks for a value, fails there"
    def __init__(self): self.how = dict(device='meta')


TIER = get_tier('smoke')


PROJECTED = dict(discriminator='projected', backbones=('test_efficientnet', 'test_vit'), disc_resolution=160)
ARMS = [None, 'd2o', 'd2o_2step', 'pd', 'cd_gan', 'ctm', 'rcd_gan', 'd2o_encoder', 'd2o_classifier', 'd2o_reuse', 'd2o_f_cond']
CHANGED = {'diffaugment':('d2o', dict(augment='diffaugment')), 'ada':('d2o', dict(augment='ada')), 'projected':('d2o_f_cond', PROJECTED),
           'projected_ada_reuse':('d2o_reuse', dict(PROJECTED, augment='ada'))}


@pytest.mark.parametrize('arm, changes', [*(pytest.param(a, {}, id=str(a)) for a in ARMS), *(pytest.param(*v, id=k) for k, v in CHANGED.items())])
def test_losses_stay_on_their_device(arm, changes, monkeypatch):
    monkeypatch.setattr(torch, 'autocast', lambda *a, **kw: nullcontext())       # knows no such device
    if changes.get('discriminator') == 'projected':
        pytest.importorskip('timm')
        monkeypatch.setattr(projected, 'open_backbone', lambda name, weights, resolution: open_backbone(name, 'random', resolution))
    data = load_images('digits')
    config = completed(replace(TIER.pretrain if arm is None else TIER.arms[arm], **changes), data)
    if arm is None: objective = Denoising(new_denoiser(config), config)
    else:
        if config.discriminator == 'classifier': config = replace(config, discriminator='random')   # judges are trained, which shapes without values cannot be
        pre = new_denoiser(replace(TIER.pretrain, net=replace(config.net, target_level=False), sigma_data=config.sigma_data))
        objective = make_objective(config, pre)
    for m in modules_of(objective): m.to('meta')
    batch = Batch(torch.empty(8, *data.shape, device='meta'), torch.empty(8, dtype=torch.int64, device='meta'))
    for turn in objective.turns(16):
        with asking_for_gradients(objective.players[turn.player]):
            loss = objective.loss(turn.loss, batch, Elsewhere())
            assert loss.shape == (8,) and loss.device.type == 'meta'
            loss.sum().backward()


class Seen(TorchDispatchMode):
    "Types of floating point that operations give"
    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        self.dtypes |= {t.dtype for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.is_floating_point()}
        return out


@pytest.mark.parametrize('name, p', [('diffaugment', None), ('ada', 0.), ('ada', .6)])
def test_augmentations_are_float32_and_on_one_device(name, p):
    "Under autocast the numbers of float32, and no operation in bfloat16, for which CUDA has no `inv`; fake tensors tell CUDA from a CPU where there is none"
    augment, images = make_augment(name), torch.rand(6, 3, 32, 32)*2 - 1
    if name == 'ada': augment.p.fill_(p)
    whole = augment(images, Draw(0))
    with torch.autocast('cpu', torch.bfloat16), Seen() as seen: within = augment(images, Draw(0))
    torch.testing.assert_close(within, whole, rtol=0, atol=1e-6)
    assert seen.dtypes == {torch.float32}
    draw = Elsewhere()
    draw.how = dict(device='cuda')
    with FakeTensorMode():
        with torch.device('cuda'): augment, images = make_augment(name), torch.empty(6, 3, 32, 32)
        assert augment(images, draw).device.type == 'cuda'
