"Blocks that are computed again leave every number alone; an evaluation that processes share is the evaluation of one; a team started from a notebook ends with it"
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import torch
from gdpt import training
from gdpt.checkpoints import load_tensors
from gdpt.data import batch_indices, load_images, to_float
from gdpt.engine import launch
from gdpt.objectives.denoising import Denoising
from gdpt.projected import ProjectedDiscriminator
from gdpt.objectives.gan import frozen_parts
from gdpt.runs import completed, make_objective, new_denoiser, pretrain
from gdpt.tiers import NetConfig, get_tier
from gdpt.training import Batch, DivergedError, Learner, learner_state, train

TIER = get_tier('smoke')
DIGITS = load_images('digits')


def batch(step, n=8):
    idx = batch_indices(DIGITS.n, 0, step, n)
    return Batch(to_float(DIGITS.images[idx]), DIGITS.labels[idx])


def learner(arm, **changes):
    "A run of little batches, with R1 at each second step"
    config = TIER.pretrain if arm is None else replace(TIER.arms[arm], r1_every=2)
    dropout = changes.pop('dropout', 0.)
    config = completed(replace(config, net=replace(config.net, dropout=dropout), batch_size=8, shard_size=4, **changes), DIGITS)
    if arm is None: return Learner(Denoising(new_denoiser(config), config), config)
    pre = new_denoiser(replace(TIER.pretrain, net=replace(config.net, target_level=False), sigma_data=config.sigma_data))
    return Learner(make_objective(config, pre), config)


def kept_bytes(objective, turn):
    "What autograd keeps of a loss: the storages of saved tensors, and of what enters the blocks"
    seen = {}
    note = lambda t: seen.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) or t
    net = objective.players[objective.product].net
    through = net.through
    net.through = lambda layer, emb, *maps: through(layer, emb, *map(note, maps))
    with training.asking_for_gradients(objective.players[turn.player]), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = objective.loss(turn.loss, batch(0), training.Draw(0)).sum()
        found = sum(seen.values())
        del loss
    del net.through
    return found


MORE = [pytest.param(arm, changes, marks=pytest.mark.slow) for arm, changes in (('d2o_2step', {}), ('ctm_gan', {}), ('d2o_f_cond', {}), ('lora', {}), ('d2o_reuse', dict(dropout=.2)), ('d2o_2step', dict(precision='bf16')))]


@pytest.mark.parametrize('arm, changes', [(None, dict(dropout=.2)), ('d2o', dict(dropout=.2)), *MORE])
def test_recomputed_blocks_change_no_bit(arm, changes):
    plain, again = (learner(arm, recompute=r, **changes) for r in (False, True))
    turn = plain.objective.turns(0)[0]
    if arm != 'ctm_gan': assert kept_bytes(again.objective, turn) < .6*kept_bytes(plain.objective, turn)
    for step in range(3):
        for one in (plain, again): one.advance(batch(step))
    a, b = map(learner_state, (plain, again))
    assert a.keys() == b.keys() and [k for k in a if not a[k].equal(b[k])] == []
    assert again.meter.evaluations > plain.meter.evaluations


def test_frozen_parts_of_a_projected_discriminator_are_counted_by_themselves():
    disc = ProjectedDiscriminator(NetConfig(), ('test_efficientnet',), 'random', resolution=128)
    parts = frozen_parts(disc)
    assert list(parts) == ['discriminator.mixings.0', 'discriminator.backbone0']
    x = torch.randn(2, 1, 8, 8)
    def work(x, learns):
        meter = training.Meter({'discriminator':disc, **parts}, 'discriminator')
        for p in disc.heads.parameters(): p.requires_grad_(learns)
        disc(x)
        return {k.split('.')[-1]:n/2 for k, n in meter.work.items()}
    assert work(x, True) == {'backbone0':1, '0':1, 'discriminator':3}
    assert work(x.requires_grad_(), False) == {'backbone0':2, '0':2, 'discriminator':2}


class Sick(Denoising):
    "Gradients are no numbers from the 31st step on"
    well = False
    def loss(self, name, batch, draw):
        bad = self.calls >= 30 and not self.well
        self.calls += 1
        return super().loss(name, batch, draw)*(float('nan') if bad else 1.)
    calls = 0


def test_the_last_good_state_is_there_after_a_streak(tmp_path, monkeypatch):
    monkeypatch.setattr(training, 'SAVE_SECONDS', -1.)
    config = completed(replace(TIER.pretrain, batch_size=8, shard_size=8, images=400), DIGITS)
    build = lambda cls: lambda: cls(new_denoiser(config), config)
    with pytest.raises(DivergedError, match='20 times in a row'): train(build(Sick), DIGITS, config, tmp_path/'run')
    state, meta = load_tensors(tmp_path/'run'/'state.safetensors')
    short = Learner(build(Denoising)(), config)
    for step in range(25): short.advance(batch(step))
    assert meta['step'] == 25 and [k for k, v in learner_state(short).items() if not v.equal(state[k])] == []
    train(build(Denoising), DIGITS, config, tmp_path/'run')                                    # cured, it goes on from there
    train(build(Denoising), DIGITS, config, tmp_path/'whole')
    a, b = (load_tensors(tmp_path/k/'state.safetensors')[0] for k in ('run', 'whole'))
    assert [k for k in a if not a[k].equal(b[k])] == []


TEAM = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
PLAIN = {**os.environ, 'GDPT_PROGRESS':'plain', 'OMP_NUM_THREADS':'1'}

EVALUATE = '''
import json, sys
from dataclasses import replace
from pathlib import Path
from gdpt.engine import team
from gdpt.protocols import SPACES
from gdpt.runs import evaluate, samples_of, tier_floors, tier_judges
from gdpt.tiers import get_tier
run, tier = Path(sys.argv[1]), get_tier('smoke')
found = []
for judges in (tier_judges(tier), [SPACES['cells'], SPACES['contrasts']]):
    found += [evaluate(run, judges, 270, blocks=2), tier_floors(replace(tier, eval_samples=64, floor_repeats=1), judges)]
found.append(samples_of(run, 600).sum(0).tolist())
(run/f'said-{team().size}-{team().rank}').write_text(json.dumps(found))
'''


def test_shared_evaluation_is_that_of_one(tmp_path, monkeypatch):
    (tmp_path/'evaluate.py').write_text(EVALUATE)
    pretrain(replace(TIER.pretrain, images=64), tmp_path/'run')
    shutil.copytree(tmp_path/'run', tmp_path/'two')
    monkeypatch.setenv('GDPT_ROOT', str(tmp_path/'root-run'))
    monkeypatch.setattr(sys, 'argv', ['', str(tmp_path/'run')])
    exec(EVALUATE, {})
    done = subprocess.run([sys.executable, *TEAM, tmp_path/'evaluate.py', tmp_path/'two'], capture_output=True, text=True, env={**PLAIN, 'GDPT_ROOT':str(tmp_path/'root-two')})
    assert done.returncode == 0, done.stderr[-2000:]
    one, *two = (json.loads((tmp_path/f).read_text()) for f in ('run/said-1-0', 'two/said-2-0', 'two/said-2-1'))
    assert two == [one, one]
    for file in ['metrics.json', *sorted(f'protocols/{p.name}' for p in (tmp_path/'run'/'protocols').iterdir())]:
        assert json.loads((tmp_path/'run'/file).read_text()) == json.loads((tmp_path/'two'/file).read_text())
    kept = [load_tensors(p)[0] for root in ('run', 'two') for p in sorted((tmp_path/f'root-{root}'/'data'/'cache'/'references').glob('*.safetensors'))]
    assert len(kept) == 4 and all(a[k].equal(b[k]) for a, b in zip(kept[:2], kept[2:]) for k in a)


@pytest.mark.slow
def test_commands_of_a_team(tmp_path):
    env = {**PLAIN, 'GDPT_ROOT':str(tmp_path)}
    def gdpt(line, team=True):
        done = subprocess.run([sys.executable, *TEAM*team, '-m', *['--']*team, 'gdpt', *line.split()], capture_output=True, text=True, env=env)
        return done.returncode, done.stdout, [l for l in done.stderr.splitlines() if l.startswith('gdpt:')]
    assert gdpt(f'pretrain --tier smoke --out {tmp_path}/run')[:2] == (0, f'{tmp_path}/run\n')
    code, said, _ = gdpt(f'evaluate {tmp_path}/run --n 260')
    alone = gdpt(f'evaluate {tmp_path}/run --n 260', team=False)
    assert code == alone[0] == 0 and said.startswith('judge conv: trained') and said.endswith(alone[1])
    assert gdpt(f'sample {tmp_path}/run --n 300 --out {tmp_path}/two.npz')[:2] == (0, f'{tmp_path}/two.npz\n')
    assert gdpt(f'sample {tmp_path}/run --n 300 --out {tmp_path}/one.npz', team=False)[0] == 0
    assert (tmp_path/'one.npz').read_bytes() == (tmp_path/'two.npz').read_bytes()
    with pytest.raises(ChildProcessError, match='gdpt sample on 2 processes: at least one image'): launch('sample', tmp_path/'run', '--n', 0, '--out', tmp_path/'x.npz', processes=2)
    for line, why in (('results --tier smoke', 'results is work for one process: start it without a launcher'), ('evaluate nowhere', 'nowhere: no such run folder')):
        code, said, errors = gdpt(line)
        assert code and not said and set(errors) == {f'gdpt: {why}'}, errors


NOTEBOOK = '''
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from gdpt.engine import launch
try: launch('pretrain', '--tier', 'smoke', '--images', 3_200_000, '--out', sys.argv[1], processes=2)
except KeyboardInterrupt: print('interrupted')
'''


def mine(word):
    return [p for p in psutil.process_iter(['cmdline']) if word in ' '.join(p.info['cmdline'] or []) and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_a_team_ends_with_its_notebook(tmp_path, how):
    (tmp_path/'notebook.py').write_text(NOTEBOOK)
    kernel = subprocess.Popen([sys.executable, tmp_path/'notebook.py', tmp_path/'run'], env=PLAIN, stdout=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 500
        while not (tmp_path/'run'/'log.csv').exists():
            assert kernel.poll() is None and time.monotonic() < until
            time.sleep(.1)
        assert len(mine(str(tmp_path/'run'))) >= 4                                           # kernel, launcher and two processes
        kernel.send_signal(how)
        said = kernel.communicate(timeout=100)[0]
        if how == signal.SIGINT: assert said.rstrip().endswith('interrupted') and mine(str(tmp_path/'run')) == []
        until = time.monotonic() + 60                                                         # a killed kernel cannot say so: the next line of progress fails
        while mine(str(tmp_path/'run')) and time.monotonic() < until: time.sleep(1)
        assert mine(str(tmp_path/'run')) == []
        assert len(list(csv.DictReader((tmp_path/'run'/'log.csv').open())))
    finally:
        for p in mine(str(tmp_path/'run')): p.kill()
