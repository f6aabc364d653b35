"Whole runs, from outside: what freezing moves, what an evaluation depends on, what bad input is told"
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from conftest import ROOT
from gdpt.__main__ import main
from gdpt.checkpoints import file_checksum, find_snapshot, load_denoiser, load_tensors
from gdpt.data import load_images
from gdpt.denoiser import GaussianDenoiser
from gdpt.judges import load_judge
from gdpt.metrics import measure
from gdpt.runs import finetune, new_denoiser, pretrain, samples_of
from gdpt.sampling import BLOCK, heun, latents, nfe, noise_levels
from gdpt.tiers import get_tier, read_config
from gdpt.training import Learner, done
from gdpt.unet import frozen_names, make_net

SMOKE = get_tier('smoke')


@pytest.fixture(scope='module')
def denoiser(tmp_path_factory): return pretrain(SMOKE.pretrain, tmp_path_factory.mktemp('pre')/'run')


@pytest.mark.parametrize('level', [0, 1, 2, 3])
def test_freezing(tmp_path, denoiser, level):
    "Frozen weights end bitwise where they started, every other one has moved, and samples come from weights that obey the same mask"
    run = finetune(replace(SMOKE.arm('pretrained', level), images=320), denoiser, tmp_path/'run')
    start, end = load_tensors(find_snapshot(denoiser))[0], load_tensors(find_snapshot(run))[0]
    net = load_denoiser(run).net
    learned = {k for k, _ in net.named_parameters()} - frozen_names(net, level)
    assert {k for k in start if not start[k].equal(end[k])} == learned
    state = load_tensors(run/'state.safetensors')[0]
    assert all(state[f'generator/net/{k}'].equal(start[k]) for k in frozen_names(net, level))


def test_random_start_is_the_seed_s(tmp_path):
    "The control starts from the random weights of its own seed, frozen ones included"
    config = replace(SMOKE.arms['random_frozen'], seed=5)
    run = finetune(config, None, tmp_path/'run')
    start, end = new_denoiser(replace(config, sigma_data=.75)).net.state_dict(), load_tensors(find_snapshot(run))[0]
    assert all(start[k].equal(end[k]) for k in frozen_names(load_denoiser(run).net, 1))


def test_sampler_against_the_exact_denoiser():
    "Second order towards the closed form, at a standard deviation and a number of levels that the notebook does not use"
    noise = latents(100, (1, 2, 2), seed=3).double()
    exact = 80*noise*.752/(.752**2 + 80**2)**.5
    error = {}
    for n in (40, 80, 160):
        d = GaussianDenoiser(.752)
        error[n] = (heun(d, noise, noise_levels(n)) - exact).abs().max().item()
        assert d.nfe == nfe(n)
    assert 3.3 < error[40]/error[80] < 4.7 and 3.3 < error[80]/error[160] < 4.7


def test_same_images_at_any_count(denoiser):
    many = samples_of(denoiser, 2*BLOCK + 7)
    for n in (1, 13, BLOCK, BLOCK + 1): assert samples_of(denoiser, n).equal(many[:n])


def test_same_numbers_at_any_batch_size(denoiser, tmp_path):
    "The judges see the same images in other batches: equal up to the rounding of float32 features"
    data = load_images('digits')
    judges = [load_judge(j, tmp_path) for j in SMOKE.judges]
    samples = samples_of(denoiser, 300)
    one = measure(samples, data, judges)
    for batch_size in (7, 64, 300):
        other = measure(samples, data, judges, batch_size=batch_size)
        assert other.keys() == one.keys()
        for m in one: assert other[m] == pytest.approx(one[m], rel=1e-5, abs=1e-7), (m, batch_size)


def test_other_images_are_another_run(capsys, tmp_path):
    "The same name, one more image: a finished run is not returned for it"
    images = np.random.default_rng(0).integers(0, 256, (65, 1, 8, 8), dtype=np.uint8)
    line = ['pretrain', '--tier', 'smoke', '--sigma-data', '.6', '--data', tmp_path/'mine.npz', '--out', tmp_path/'run']
    np.savez(tmp_path/'mine.npz', images=images[:64])
    assert main([*map(str, line)]) == 0
    capsys.readouterr()
    np.savez(tmp_path/'mine.npz', images=images)
    assert 'data_checksum' in one_line(capsys, *line)


def one_line(capsys, *argv):
    "What the command line says when it refuses"
    assert main([*map(str, argv)]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1 and err.startswith('gdpt: '), err
    return err


def test_refusals(capsys, tmp_path, denoiser):
    assert "unknown tier 'tniy': expected one of" in one_line(capsys, 'pretrain', '--tier', 'tniy', '--out', tmp_path/'x')
    assert 'seed 0 there, 1 here' in one_line(capsys, 'pretrain', '--tier', 'smoke', '--seed', '1', '--out', denoiser)
    before = sorted(p.name for p in (denoiser/'snapshots').iterdir())
    assert 'not empty and holds no run' in one_line(capsys, 'pretrain', '--tier', 'smoke', '--out', denoiser/'snapshots')
    assert sorted(p.name for p in (denoiser/'snapshots').iterdir()) == before         # nothing was left in it
    assert 'has no config.json' in one_line(capsys, 'sample', tmp_path, '--out', tmp_path/'x.png')
    assert 'no such run folder' in one_line(capsys, 'finetune', '--tier', 'smoke', '--denoiser', tmp_path/'none', '--out', tmp_path/'x')
    assert 'no multiple of shard_size' in one_line(capsys, 'pretrain', '--tier', 'smoke', '--batch-size', '24', '--out', tmp_path/'y')
    assert main(['pretrain', '--tier', 'smoke', '--out', str(tmp_path/'y')]) == 0     # the folder was not claimed by the mistake
    capsys.readouterr()
    assert 'there are 128' in one_line(capsys, 'sample', denoiser, '--images', '99', '--out', tmp_path/'x.png')
    assert not (tmp_path/'x.png').exists()


def test_truncated_snapshot(capsys, tmp_path, denoiser):
    run = finetune(SMOKE.arms['d2o'], denoiser, tmp_path/'run')
    snapshot = find_snapshot(run)
    snapshot.write_bytes(snapshot.read_bytes()[:-100])
    capsys.readouterr()
    assert f'{snapshot} is damaged' in one_line(capsys, 'sample', run, '--out', tmp_path/'x.png')


def test_images_of_mixed_size(capsys, tmp_path):
    for i, size in enumerate([(8, 8), (8, 8), (9, 8)]): Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path/f'{i}.png')
    err = one_line(capsys, 'pretrain', '--tier', 'smoke', '--data', tmp_path, '--out', tmp_path/'run')
    assert '2.png' in err
    assert not (tmp_path/'run').exists()


def test_other_images_through_the_same_door(tmp_path):
    "A run on somebody's own .npz: the same path, with sigma_data measured"
    rng = np.random.default_rng(0)
    np.savez(tmp_path/'mine.npz', images=rng.integers(0, 256, (64, 1, 8, 8), dtype=np.uint8))
    assert main(['pretrain', '--tier', 'smoke', '--data', str(tmp_path/'mine.npz'), '--out', str(tmp_path/'run')]) == 0
    assert load_denoiser(tmp_path/'run').sigma_data == pytest.approx(1/3**.5, abs=.02)     # uniform on [-1,1]


def test_denoisers_of_both_kinds_open_alike(tmp_path, denoiser):
    x = torch.randn(3, 1, 8, 8)
    run = finetune(SMOKE.arms['d2o'], denoiser, tmp_path/'run')
    for folder in (denoiser, run):
        d = load_denoiser(folder)
        assert d(x, 80.).shape == x.shape and not any(p.requires_grad for p in d.parameters())


def test_stages_of_distillation(tmp_path, denoiser):
    "Each stage starts from the one before, samples in its own number of calls, and its rows pay for all stages"
    eight = finetune(SMOKE.arms['pd_8'], denoiser, tmp_path/'8')
    assert main(['finetune', '--arm', 'pd_4', '--tier', 'smoke', '--denoiser', str(denoiser), '--teacher', str(eight), '--out', str(tmp_path/'4')]) == 0
    assert read_config(tmp_path/'4').teacher_checksum == file_checksum(find_snapshot(eight))
    assert not samples_of(tmp_path/'4', 4).equal(samples_of(tmp_path/'4', 4, num_steps=1))
    other = finetune(replace(SMOKE.arms['pd_8'], seed=1), denoiser, tmp_path/'8b')
    with pytest.raises(ValueError, match='teacher_checksum'): finetune(SMOKE.arms['pd_4'], denoiser, tmp_path/'4', teacher=other)


@pytest.mark.parametrize('arm', ['ctm_gan', 'lora'])
def test_resume_is_exact(tmp_path, denoiser, arm, monkeypatch):
    "Several losses, or adapters: a run cut off goes on to the same bits, and to the same count of work"
    monkeypatch.setattr('gdpt.training.SAVE_SECONDS', 0.)
    monkeypatch.setattr('gdpt.training.LOG_STEPS', 1)
    config = replace(SMOKE.arms[arm], images=96, snapshots=())
    whole, calls = finetune(config, denoiser, tmp_path/'whole'), 0

    def failing(self, *args, original=Learner.advance):
        nonlocal calls
        calls += 1
        if calls == 3: raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as m:
        m.setattr(Learner, 'advance', failing)
        with pytest.raises(KeyboardInterrupt): finetune(config, denoiser, tmp_path/'cut')
    assert done(tmp_path/'cut') is None
    finetune(config, denoiser, tmp_path/'cut')
    assert find_snapshot(tmp_path/'cut').read_bytes() == find_snapshot(whole).read_bytes()
    assert done(tmp_path/'cut')['evaluations'] == done(whole)['evaluations']


def test_misused_objectives(capsys, tmp_path, denoiser):
    line = ['finetune', '--tier', 'smoke', '--denoiser', denoiser, '--out', tmp_path/'x']
    assert "unknown arm 'ctn'" in one_line(capsys, *line, '--arm', 'ctn')
    assert 'sample_steps is 0: expected at least 1' in one_line(capsys, *line, '--sample-steps', '0')
    assert 'at least 2 levels' in one_line(capsys, *line, '--arm', 'cd', '--levels', '1')
    assert 'set net.target_level' in one_line(capsys, *line, '--losses', 'distillation.CTM')
    assert 'must fall from sigma_max to sigma_min' in one_line(capsys, *line, '--sigma-max', '.001')
    assert "no objective 'gan.Gan'" in one_line(capsys, *line, '--losses', 'gan.Gan')
    flat = pretrain(replace(SMOKE.pretrain, ema_halflife_kimg=0.), tmp_path/'flat')
    capsys.readouterr()
    assert 'has no averaged weights' in one_line(capsys, 'finetune', '--tier', 'smoke', '--denoiser', flat, '--out', tmp_path/'x')
    narrow = pretrain(replace(SMOKE.pretrain, net=replace(SMOKE.pretrain.net, model_channels=8)), tmp_path/'narrow')
    capsys.readouterr()
    assert 'has another network' in one_line(capsys, *line, '--teacher', narrow, '--arm', 'pd_4')
    assert not (tmp_path/'x').exists() or not any(p.name[0] != '.' for p in (tmp_path/'x').iterdir())   # nothing was claimed by a mistake


def test_small_network_has_its_size():
    "EDM's DDPM++ with half its channels, some 14 million parameters: what the tier is announced with"
    with torch.device('meta'): net = make_net(get_tier('small').pretrain.net)
    assert sum(p.numel() for p in net.parameters()) == 13_956_355


def test_reproduce_names_every_missing_file(tmp_path):
    "... at once, before the first job"
    for name in ('nbs/studies', 'profiles', 'gdpt'): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('settings.ini', 'Snakefile', 'data/reported.csv'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT/name, tmp_path/name)
    asked = subprocess.run([sys.executable, '-m', 'snakemake', '--cores', '2', '--nolock', '--config', 'tier=paper', 'study=headline'], cwd=tmp_path, text=True,
                           capture_output=True, env={**os.environ, 'PYTHONPATH':str(tmp_path), 'GDPT_ROOT':str(tmp_path)})
    assert asked.returncode and not (tmp_path/'data'/'runs').exists()
    for name in ('cifar10', 'edm-cifar10-32x32-uncond-ve.pkl', 'edm-cifar10-32x32-cond-ve.pkl', 'ViT-B-32.pt', 'dinov2_vitl14_pretrain.pth'): assert f'{name}: ' in asked.stderr
