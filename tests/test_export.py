"Exports where there is no gdpt: the same images from diffusers alone; ONNX and torch.export graphs beside torch; models that came in from diffusers; the hub's client"
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run
from gdpt.checkpoints import claim_folder, convert, load_denoiser, save_tensors, snapshot_path, write_text
from gdpt.export import export, push, traced
from gdpt.runs import finetune, pretrain, samples_of
from gdpt.tiers import FinetuneConfig, NetConfig, get_tier, read_config
from gdpt.unet import make_net

SEED, N = 3, 5


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A project of its own"
    before = os.environ.get('GDPT_ROOT')
    os.environ['GDPT_ROOT'] = str(tmp_path_factory.mktemp('project'))
    yield tmp_path_factory.mktemp('export')
    os.environ.pop('GDPT_ROOT') if before is None else os.environ.update(GDPT_ROOT=before)


@pytest.fixture(scope='module')
def runs(root):
    "Smoke runs of every kind: a denoiser, D2O, two calls, classes; and random weights of the network with random frequencies"
    tier = get_tier('smoke')
    made = {'denoiser': pretrain(replace(tier.denoisers['denoiser'], images=64), root/'denoiser')}
    for arm in 'd2o', 'd2o_2step': made[arm] = finetune(replace(tier.arms[arm], images=64), made['denoiser'], root/arm)
    made['classes'] = finetune(replace(tier.arms['d2o_cond'], init='random', images=64), folder=root/'classes')
    config = FinetuneConfig(tier='smoke', net=NetConfig('ncsnpp', 8, 3, 8, (1, 1)), data='', images=64, batch_size=32, sigma_data=.5)
    torch.manual_seed(0)
    save_tensors(snapshot_path(claim_folder(root/'ncsnpp', config), 64), {k: t + .05*torch.randn_like(t) for k, t in make_net(config.net).state_dict().items() if not k.endswith('filter')} |
                 {k: t for k, t in make_net(config.net).state_dict().items() if k.endswith('filter')})
    write_text(root/'ncsnpp'/'DONE', json.dumps(dict(nimg=64)))
    return made | {'ncsnpp': root/'ncsnpp'}


@pytest.fixture(scope='module')
def elsewhere(root):
    "A Python that has diffusers and torch, and no gdpt"
    lent = root/'lent'         # this environment's packages, but ours; without transformers and peft, which diffusers does not need and takes ten seconds to load
    lent.mkdir()
    for site in (Path(p) for p in sys.path if p.endswith('site-packages')):
        for p in site.iterdir():
            if not p.name.startswith(('gdpt', '__editable__', 'transformers', 'peft')) and not (lent/p.name).exists(): (lent/p.name).symlink_to(p)
    code = root/'elsewhere.py'
    def go(script, **env):
        code.write_text(WITHOUT + script)
        return run(sys.executable, '-S', code, cwd=root, path=lent, HF_HOME=str(root/'hf'), HF_HUB_OFFLINE='1', **env)
    return go


WITHOUT = '''
import json, shutil, sys
from pathlib import Path
import numpy as np, torch
try: import gdpt
except ImportError: pass
else: raise SystemExit(f'gdpt can be imported here: {gdpt.__file__}')
torch.set_num_threads(2)                         # a draw by seed sets what the run had
from diffusers import DiffusionPipeline
opened = lambda folder, **how: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **how)
def same(pipe, name, **how):
    images = pipe(batch_size=5, seed=3, output_type='uint8', **how).images
    expected = torch.from_numpy(np.load(f'{name}.npy'))
    assert images.equal(expected), (name, (images.int() - expected.int()).abs().max())
def refused(call, words):
    try: call()
    except ValueError as e: assert words in str(e) and '\\n' not in str(e), e
    else: raise AssertionError(f'not refused: {words}')
'''

CHECKS = '''
for name in json.loads(Path('names.json').read_text()):
    pipe = opened(f'{name}-pipe')
    pipe.set_progress_bar_config(disable=True)
    same(pipe, name)
    pipe.save_pretrained(f'{name}-again')
    for file in ('onestep_pipeline.py', 'denoiser/onestep_network.py', 'denoiser/diffusion_pytorch_model.safetensors'):
        a,b = Path(f'{name}-pipe')/file, Path(f'{name}-again')/file
        assert file.endswith('.safetensors') or a.read_bytes() == b.read_bytes(), file
    for m in [m for m in sys.modules if m.startswith('diffusers_modules')]: del sys.modules[m]
    again = opened(f'{name}-again')
    kept,weights = again.denoiser.state_dict(), pipe.denoiser.state_dict()
    assert kept.keys() == weights.keys() and all(kept[k].equal(weights[k]) for k in kept)
    if name == 'classes':
        same(again, name)
        same(again, 'nines', class_labels=9)

pipe = opened('d2o-pipe')
assert [i.size for i in pipe(batch_size=2).images] == [(8,8)]*2
expected = np.load('d2o.npy')
assert (np.stack([np.asarray(i) for i in pipe(batch_size=5, seed=3).images]) == expected[:,0]).all()
assert (np.round(pipe(batch_size=5, seed=3, output_type='np').images[...,0]*255) == expected[:,0]).all()
one = lambda: pipe(batch_size=3, generator=torch.Generator().manual_seed(0), output_type='pt').images
assert one().equal(one()) and one().shape == (3,1,8,8) and pipe(output_type='pt', return_dict=False)[0].shape == (1,1,8,8)
assert pipe(latents=torch.zeros(1,1,8,8), num_inference_steps=2, output_type='pt').images.shape == (1,1,8,8)
assert pipe.to('cpu') is pipe and pipe.device.type == 'cpu'
pipe.to('meta')
assert pipe.denoiser.device.type == 'meta'

frequencies = opened('ncsnpp-pipe').denoiser.net.map_noise.freqs
for dtype,variant,tolerance in (torch.float16, 'fp16', .02), (torch.bfloat16, None, .1):
    half,whole = opened('ncsnpp-pipe', variant=variant, torch_dtype=dtype), opened('ncsnpp-pipe')
    assert half.denoiser.dtype == dtype and half.denoiser.net.map_noise.freqs.equal(frequencies)
    z = torch.randn(4, 3, 8, 8)
    a,b = (p(batch_size=4, latents=z, output_type='pt').images for p in (half, whole))
    assert a.dtype == torch.float32 and 0 < (a-b).abs().max() < tolerance, (a-b).abs().max()
    assert whole.to(dtype).denoiser.net.map_noise.freqs.equal(frequencies)

cond = opened('classes-pipe')
cond.set_progress_bar_config(disable=True)
assert cond(batch_size=3, class_labels=[0,9,4], output_type='pt').images.shape == (3,1,8,8)
assert cond(batch_size=3, output_type='pt').images.shape == (3,1,8,8)
refused(lambda: cond(class_labels=10), 'expected 0 to 9, got 10')
refused(lambda: cond(batch_size=0), 'at least 1')
refused(lambda: opened('d2o-pipe')(class_labels=1), 'unconditional')
print('checked', file=sys.stdout)
'''


def expected(root, name, folder, **how): np.save(root/f'{name}.npy', samples_of(folder, N, seed=SEED, **how).numpy())


def test_pipelines_without_gdpt(root, runs, elsewhere):
    for name, folder in runs.items():
        export(folder, 'diffusers', root/f'{name}-pipe', variants=['fp16'])
        expected(root, name, folder)
    expected(root, 'nines', runs['classes'], label=9)
    (root/'names.json').write_text(json.dumps(list(runs)))
    said = elsewhere(CHECKS)
    assert 'checked' in said and '%|' in said        # the bar is shown unless it is turned off


def test_hub(root, runs, monkeypatch):
    "What is sent, through the hub's own client, which is not asked in a dry run"
    import huggingface_hub
    asked = []

    class Api:
        def create_repo(self, repo, exist_ok): asked.append(repo)
        def upload_folder(self, repo_id, folder_path, ignore_patterns, commit_message):
            asked.append(folder_path)
            return f'https://hub/{repo_id}'

    out = export(runs['d2o'], 'diffusers', root/'sent')
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    listed = push(out, 'owner/name', dry_run=True)
    assert asked == [] and sorted(l.split()[0] for l in listed[1:]) == sorted(str(p.relative_to(out)) for p in out.rglob('*') if p.is_file())
    assert push(out, 'owner/name') == ['https://hub/owner/name'] and asked == ['owner/name', out]
    def down(*a, **k): raise OSError('no route\nto host')
    monkeypatch.setattr(Api, 'create_repo', down)
    with pytest.raises(ValueError, match='owner/name was not sent: no route to host'): push(out, 'owner/name')


def test_command_line(root, runs, capsys):
    "Bad input is one line and exit status 2"
    from gdpt.__main__ import main
    def says(*argv):
        status = main(list(map(str, argv)))
        return status, ''.join(capsys.readouterr())
    status, said = says('export', runs['d2o'], '--to', 'diffusers', '--out', root/'cli', '--variant', 'bf16', '--push-to-hub', 'me/digits', '--dry-run')
    assert status == 0 and 'diffusion_pytorch_model.bf16.safetensors' in said
    card = (root/'cli'/'README.md').read_text()
    assert 'License'.lower() in card and 'smoke' in card and 'trust_remote_code=True' in card
    (root/'full').mkdir(exist_ok=True)
    (root/'full'/'mine').write_text('')
    claim_folder(root/'begun', replace(read_config(runs['d2o']), seed=9))
    for argv, words in ((('--to', 'coreml', '--out', root/'x'), "unknown format 'coreml'"), (('--to', 'diffusers', '--out', root/'full'), 'is not empty'),
                        (('--to', 'onnx', '--out', root/'cli'), 'another export'), (('--to', 'diffusers', '--out', root/'x', '--variant', 'fp8'), "variant 'fp8'")):
        status, said = says('export', runs['d2o'], *argv)
        assert status == 2 and words in said and said.count('\n') == 1, said
    status, said = says('export', root/'begun', '--to', 'diffusers', '--out', root/'x')
    assert status == 2 and 'no finished run' in said and not (root/'x').exists()


def test_exporter_not_installed(root, runs, monkeypatch):
    import gdpt.export
    monkeypatch.setattr(gdpt.export, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'pip install gdpt\[export\]'): export(runs['d2o'], 'onnx', root/'absent')
    assert not (root/'absent').exists()


@pytest.mark.slow
def test_card_has_the_numbers_that_were_measured(root, runs):
    from gdpt.runs import evaluate, tier_judges
    tier = get_tier('smoke')
    values = [evaluate(runs['d2o'], tier_judges(tier), tier.eval_samples, seed=seed) for seed in (0, 2)]
    card = (export(runs['d2o'], 'diffusers', root/'judged')/'README.md').read_text()
    assert '| metric | seed 0 | seed 2 | floor |' in card and f"| fd | {values[0]['fd']:.4g} | {values[1]['fd']:.4g} | " in card


@pytest.mark.slow
@pytest.mark.parametrize('name', ['d2o_2step', 'classes', 'denoiser'])
def test_graphs_agree_with_torch(name, root, runs):
    "onnxruntime and torch.export's own loader, on numbers of images that were not traced"
    import onnxruntime
    for to in 'onnx', 'torch-export': export(runs[name], to, root/f'{name}-{to}')
    d, config = load_denoiser(runs[name]), read_config(runs[name])
    torch.manual_seed(0)
    for part, module, inputs in traced(d, config):
        session = onnxruntime.InferenceSession(root/f'{name}-onnx'/f'{part}.onnx', providers=['CPUExecutionProvider'])
        program = torch.export.load(root/f'{name}-torch-export'/f'{part}.pt2').module()
        for n in 1, 7:
            given = {k: torch.randn(n, *t.shape[1:]) if t.ndim == 4 else torch.rand(n)*70 + .01 if k == 'sigma' else torch.randint(10, (n,)) for k, t in inputs.items()}
            whole = module(**given)
            for images in torch.from_numpy(session.run(None, {k: t.numpy() for k, t in given.items()})[0]), program(**given):
                torch.testing.assert_close(images, whole, atol=1e-4, rtol=0)


STOCK = '''
import diffusers
from diffusers import EDMEulerScheduler, UNet2DModel
pipe = opened('tuned-pipe')
assert type(pipe.unet) is UNet2DModel and type(pipe.scheduler) is EDMEulerScheduler
pipe.set_progress_bar_config(disable=True)
same(pipe, 'tuned')
pipe.save_pretrained('tuned-again')
same(opened('tuned-again'), 'tuned')
# the classes of diffusers alone: one step of Euler is the generator
unet,scheduler = UNet2DModel.from_pretrained('tuned-pipe/unet'), EDMEulerScheduler.from_pretrained('tuned-pipe/scheduler')
scheduler.set_timesteps(1)
z = torch.randn(3, 1, 8, 8)
t,noise = scheduler.timesteps[0], z*scheduler.sigmas[0]
with torch.no_grad(): x = scheduler.step(unet(scheduler.scale_model_input(noise, t), t).sample, t, noise).prev_sample
ours = pipe(batch_size=3, latents=z, output_type='pt').images*2 - 1
assert (x.clamp(-1, 1) - ours).abs().max() < 1e-4, (x.clamp(-1, 1) - ours).abs().max()
# ... and the teacher by n Euler steps, beside our first-order sampler on the same levels
denoiser = opened('born-pipe')
same(denoiser, 'born')
scheduler.set_timesteps(8)
x = z*scheduler.sigmas[0]
euler = z*scheduler.sigmas[0]
with torch.no_grad():
    for t,s,s_next in zip(scheduler.timesteps, scheduler.sigmas, scheduler.sigmas[1:]):
        x = scheduler.step(denoiser.unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
        euler = s_next/s*euler + (1 - s_next/s)*denoiser.denoiser(euler, s)
assert (x - euler).abs().max() < 1e-3*euler.abs().max(), (x - euler).abs().max()
half = opened('tuned-pipe', variant='fp16', torch_dtype=torch.float16)
assert half.unet.dtype == torch.float16 and 0 < (half(batch_size=3, latents=z, output_type='pt').images*2 - 1 - ours).abs().max() < .02
print('checked')
'''


@pytest.mark.slow
def test_model_that_came_from_diffusers(root, elsewhere):
    "In, tuned by D2O, and out again as what it was"
    import diffusers
    blocks = dict(down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'), block_out_channels=(16, 16), layers_per_block=1)
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, norm_num_groups=4, attention_head_dim=8, **blocks)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(root/'theirs')
    with pytest.raises(ValueError, match='not preconditioned as EDM'): convert(root/'theirs', root/'never')
    diffusers.EDMEulerScheduler(sigma_data=.5).save_pretrained(root/'theirs'/'scheduler')
    from gdpt.__main__ import main
    born = root/'born'
    assert main(f'convert {root}/theirs --data digits --tier smoke --sample-steps 4 --out {born}'.split()) == 0
    config = replace(get_tier('smoke').arms['d2o'], net=read_config(born).net)
    for freeze in 1, 'lora':
        with pytest.raises(ValueError, match='tuned whole: freeze=0'): finetune(replace(config, freeze=freeze), born, root/'never')
    tuned = finetune(config, born, root/'tuned')
    before, after = load_denoiser(born).net.state_dict(), load_denoiser(tuned).net.state_dict()
    assert before.keys() == after.keys() and not all(before[k].equal(after[k]) for k in before)
    for name, folder in ('born', born), ('tuned', tuned):
        export(folder, 'diffusers', root/f'{name}-pipe', variants=['fp16'])
        expected(root, name, folder)
    assert 'checked' in elsewhere(STOCK)


@pytest.mark.slow
def test_samplers_of_diffusers(root):
    "Heun's sampler of diffusers draws from a DDPM network what ours draws from it, on the same levels"
    import diffusers
    from gdpt.sampling import heun
    torch.manual_seed(0)
    blocks = dict(down_block_types=('DownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'UpBlock2D'), block_out_channels=(16, 16), layers_per_block=1)
    unet = diffusers.UNet2DModel(sample_size=8, norm_num_groups=4, **blocks).eval().requires_grad_(False)
    scheduler = diffusers.HeunDiscreteScheduler()
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(root/'heun')
    scheduler.save_pretrained(root/'heun'/'scheduler')
    scheduler.set_timesteps(10)
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2], torch.zeros(1)]).double()
    z = torch.randn(2, 3, 8, 8)
    x = z*scheduler.sigmas[0]
    for t in scheduler.timesteps: x = scheduler.step(unet(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    ours = heun(load_denoiser(root/'heun'), z, sigmas)
    assert (x - ours).abs().max() < 2e-3*ours.abs().max(), (x - ours).abs().max()/ours.abs().max()
