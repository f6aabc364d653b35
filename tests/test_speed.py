"""The paper's CIFAR-10 recipe at batch 4 on two threads: how much faster than a plain eager transcription of PAPER.md section 3, and how close to it

Weights are made up; times are compared by turns, so that what else the machine does falls on both."""
from dataclasses import replace
from statistics import median

import pytest
import torch
from gdpt.bench import Case, in_fresh_process, seconds_of
from gdpt.objectives.gan import GAN
from gdpt.projected import ProjectedDiscriminator
from gdpt.runs import new_denoiser
from gdpt.tiers import get_tier
from gdpt.training import Batch, Learner, threads_and_rng
from torch import nn

timm = pytest.importorskip('timm')
from test_projected import Plain, both, trained  # noqa: E402

pytestmark = pytest.mark.slow
CONFIG = replace(get_tier('paper').arms['d2o'], batch_size=4, shard_size=4, precision='fp32', threads=2, images=10**6, snapshots=())
NAMES, FOLDER = CONFIG.backbones, 'data/backbones'
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))*2 - 1


class Frozen(nn.Module):
    "The plain discriminator as a player: its feature networks and mixing do not learn"
    def __init__(self, plain):
        super().__init__()
        self.plain = plain
        for m in (plain.models, plain.disc.mixings): m.requires_grad_(False)

    def forward(self, images, class_labels=None): return self.plain(images)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A project with feature networks"
    root = tmp_path_factory.mktemp('speed')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GDPT_ROOT', str(root))
        (root/FOLDER).mkdir(parents=True)
        both(str(root/FOLDER), NAMES, 224)
        yield root


def learner(root, kind='ours', freeze=0, precision='fp32', features='fp32'):
    config = replace(CONFIG, freeze=freeze, precision=precision, disc_precision=features)
    torch.manual_seed(0)
    disc = ProjectedDiscriminator(config.net, NAMES, str(root/FOLDER), 224, precision=features)
    if kind == 'plain': disc = Frozen(Plain(disc, NAMES, [trained(n) for n in NAMES], 224))
    return Learner(GAN(new_denoiser(config), disc, config), config)


def ratios(root, cases, rounds=5):
    "How many times faster than the first each of these is: median over rounds of steps by turns"
    with threads_and_rng(CONFIG.threads):
        learners = {k:learner(root, *how) for k, how in cases.items()}
        for l in learners.values(): l.advance(Batch(IMAGES, None))
        times = [{k:seconds_of(lambda l=l: l.advance(Batch(IMAGES, None)), 1) for k, l in learners.items()} for _ in range(rounds)]
    first, found = next(iter(cases)), {k:median(t[next(iter(cases))]/t[k] for t in times) for k in cases}
    print({k:f'{4/median(t[k] for t in times):.2f} images/s, {found[k]:.2f} times {first}' for k in cases})
    return found


def test_faster_than_plain(root):
    "... by the same numbers"
    assert ratios(root, {'plain':('plain',), 'ours':()})['ours'] >= 1.15
    batch = Batch(IMAGES, None)
    plain, ours = learner(root, 'plain'), learner(root)
    with threads_and_rng(CONFIG.threads): losses = [[float(l.turn(t, batch)) for t in l.objective.turns(1)] for l in (plain, ours)]
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason='this processor has no bfloat16 arithmetic')
def test_bfloat16(root):
    found = ratios(root, {'fp32':(), 'bf16 features':('ours', 0, 'fp32', 'bf16'), 'bf16':('ours', 0, 'bf16', 'bf16')})
    assert found['bf16 features'] >= 1.4 and found['bf16'] >= 2


def test_frozen(root):
    "D2O-F: at most .88 of the time of D2O, and half a GiB less"
    found = ratios(root, {'d2o':(), 'd2o_f':('ours', 1)})
    assert 1/found['d2o_f'] <= .88
    mib = {k:in_fresh_process(Case('paper', k, 4, threads=2), seconds=1., rounds=1)['memory_mib'] for k in ('d2o', 'd2o_f')}
    print(mib)
    assert mib['d2o'] - mib['d2o_f'] >= 512
