"Published measures: against torch-fidelity called by hand, closed forms and made-up weights of the real architectures; nothing is fetched"
import io
import json
import socket
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from gdpt import protocols
from gdpt.data import make_images
from gdpt.metrics import METRICS, ImageSet, measure
from gdpt.protocols import KEEP, SPACES, DinoV2, Features, Space, add_extractors, compare, extract, judged, judged_floors, open_extractor, parts_played, protocol_values, reference
from torch import nn

INCEPTION, CLIP, DINOV2, CELLS, CONTRASTS = SPACES.values()
BY_HAND = dict(cuda=False, verbose=False, cache=False, save_cpu_ram=True)
NAMES = {'fd':'frechet_inception_distance', 'kid':'kernel_inception_distance_mean', 'is':'inception_score_mean', 'precision':'precision', 'recall':'recall'}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    "A project root and a weights folder of its own, and no network"
    monkeypatch.setenv('GDPT_ROOT', str(tmp_path))
    monkeypatch.setenv('GDPT_WEIGHTS', str(tmp_path/'weights'))
    def refuse(*args): raise AssertionError('the network was asked')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    (tmp_path/'weights').mkdir()


def pictures(n, seed, side=32, shift=0.):
    "Smooth random colours, uint8 (n,3,side,side)"
    gen = torch.Generator().manual_seed(seed)
    x = nn.functional.interpolate(torch.randn(n, 3, 5, 5, generator=gen), size=side, mode='bilinear')
    return (128 + 40*x + 10*torch.randn(n, 3, side, side, generator=gen) + shift).clamp(0, 255).to(torch.uint8)


def given(*images):
    "A generator whose images are at hand"
    x = torch.cat(images)
    return lambda seeds: x[seeds.start:seeds.stop].split(7)


def put(space, folder, content):
    "The space with a weights file that was made here"
    (folder/'weights'/f'made-{space.name}').write_bytes(content)
    return replace(space, file=f'made-{space.name}', sha256=protocols.sha256_of(folder/'weights'/f'made-{space.name}'))


def saved(state):
    torch.save(state, f := io.BytesIO())
    return f.getvalue()


@pytest.fixture(scope='module')
def inception_file():
    "Random weights of torch-fidelity's Inception, scaled so that activations neither vanish nor explode"
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, state): pass
    torch.manual_seed(0)
    net = Empty('inception-v3-compat', ['2048'], feature_extractor_weights_path=io.BytesIO(saved({})))
    for m in net.modules():
        if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight)
    nn.init.normal_(net.fc.weight, std=.1)
    return saved(net.state_dict())


def clip_file(width=64):
    "CLIP's image encoder, two blocks deep, in the TorchScript form that OpenAI publishes"
    from torch_fidelity.feature_extractor_clip import CLIPVisual
    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual,self.text_projection = CLIPVisual(24, 64, 2, width, 16).visual,nn.Parameter(torch.zeros(8, 24))
        def forward(self, x): return self.visual(x)
    torch.manual_seed(1)
    net = Clip().eval()
    for p in net.parameters(): nn.init.normal_(p, std=.2)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 64, 64)), f := io.BytesIO())
    return f.getvalue()


def dino_state(width=128, depth=2, side=16):
    gen = torch.Generator().manual_seed(2)
    shapes = {'cls_token':(1,1,width), 'pos_embed':(1,1+side*side,width), 'mask_token':(1,width), 'patch_embed.proj.weight':(width,3,14,14),
              'patch_embed.proj.bias':(width,), 'norm.weight':(width,), 'norm.bias':(width,)}
    for i in range(depth): shapes |= {f'blocks.{i}.{k}':tuple(v.shape) for k,v in protocols.DinoBlock(width, 4*width).state_dict().items()}
    return {k:.2*torch.randn(s, generator=gen) for k,s in shapes.items()}


def test_inception_by_hand(tmp_path, inception_file):
    "Every measure of Inception's, two layers in one pass, from a local file: what torch-fidelity says of the same images and file"
    from torch_fidelity import calculate_metrics
    wide = put(replace(INCEPTION, measures=(('kid','kid'), ('is','is'), ('precision','precision'), ('recall','recall'))), tmp_path, inception_file)
    thin = put(replace(INCEPTION, name='thin', layer='64', logits='', measures=(('fid','fd'),)), tmp_path, inception_file)   # a covariance of 2048 would take minutes
    samples, data = pictures(12, 0), make_images('real', pictures(12, 1, shift=15.))
    values, protocol = protocol_values(given(samples), data, [wide, thin], n=12, blocks=1)
    hand = calculate_metrics(input1=ImageSet(samples), input2=ImageSet(data.images), isc=True, fid=True, kid=True, prc=True, feature_layer_fid='64', feature_layer_prc='2048',
        feature_extractor='inception-v3-compat', feature_extractor_weights_path=str(tmp_path/'weights'/thin.file), kid_subset_size=12, batch_size=12, **BY_HAND)
    assert set(values) == {'fid12', 'kid12', 'is12', 'precision12', 'recall12'}
    for name, part in (('fid','fd'), ('kid','kid'), ('is','is')): assert values[f'{name}12'] == pytest.approx(hand[NAMES[part]], rel=1e-5)
    for name in ('precision', 'recall'): assert values[f'{name}12'] == hand[name]
    assert protocol['spaces']['thin']['weights_sha256'] == thin.sha256[:16] and json.loads(json.dumps(protocol)) == protocol


def test_many_images_by_hand():
    "The same with enough images that subsets and covariances are what they are at scale, whatever the batches"
    from torch_fidelity import calculate_metrics
    add_extractors()
    samples, data = pictures(500, 2, shift=5.), make_images('real', pictures(600, 3))
    hand = calculate_metrics(input1=ImageSet(samples), input2=ImageSet(data.images), fid=True, kid=True, prc=True, feature_extractor='gdpt-cells', kid_subset_size=500,
        batch_size=64, **BY_HAND)
    values, _ = protocol_values(given(samples), data, [CELLS], n=500, blocks=1)
    for part in ('fd', 'kid'): assert values[f'{part}_cells500'] == pytest.approx(hand[NAMES[part]], rel=1e-5)
    for part in ('precision', 'recall'): assert values[f'{part}_cells500'] == hand[part]
    found = [extract(samples.split(size), [CELLS], batch_size=at)['cells'] for size, at in ((500, 250), (7, 3))]
    assert compare(CELLS, found[0], found[1])['fd_cells'] == pytest.approx(0, abs=1e-6)


def test_device_is_the_one_that_was_asked_for(monkeypatch):
    "`GDPT_DEVICE=cpu` keeps the measures off a GPU that torch would have (here it only believes so, and to use it would fail)"
    from gdpt.engine import team
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setenv('GDPT_DEVICE', 'cpu')
    team.cache_clear()
    try: values, protocol = protocol_values(given(pictures(20, 6)), make_images('real', pictures(20, 7)), [CELLS], n=20, blocks=1)
    finally: team.cache_clear()
    assert protocol['device'] == 'cpu' and values['fd_cells20'] > 0


def test_clip_by_hand(tmp_path):
    from torch_fidelity import calculate_metrics
    space = put(CLIP, tmp_path, clip_file())
    samples, data = pictures(60, 4), make_images('real', pictures(60, 5, shift=20.))
    values, _ = protocol_values(given(samples), data, [space], n=60, blocks=1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        hand = calculate_metrics(input1=ImageSet(samples), input2=ImageSet(data.images), fid=True, feature_extractor='clip-vit-b-32',
            feature_extractor_weights_path=str(tmp_path/'weights'/space.file), **BY_HAND)
    assert list(values) == ['clip_fid60'] and values['clip_fid60'] == pytest.approx(hand[NAMES['fd']], rel=1e-5)


def test_dinov2_is_a_transformer(tmp_path):
    "The encoder against torch's own pre-norm layers, in which a branch's factor is part of its last linear map; then as a space"
    state = dino_state()
    layers = []
    for i in range(2):
        p = {k.removeprefix(f'blocks.{i}.'):v for k,v in state.items() if k.startswith(f'blocks.{i}.')}
        layer = nn.TransformerEncoderLayer(128, 2, 512, 0., 'gelu', 1e-6, batch_first=True, norm_first=True)
        a, b = p['ls1.gamma'], p['ls2.gamma']
        layer.load_state_dict({'self_attn.in_proj_weight':p['attn.qkv.weight'], 'self_attn.in_proj_bias':p['attn.qkv.bias'], 'self_attn.out_proj.weight':a[:,None]*p['attn.proj.weight'],
            'self_attn.out_proj.bias':a*p['attn.proj.bias'], 'linear1.weight':p['mlp.fc1.weight'], 'linear1.bias':p['mlp.fc1.bias'], 'linear2.weight':b[:,None]*p['mlp.fc2.weight'],
            'linear2.bias':b*p['mlp.fc2.bias'], **{f'norm{k}.{w}':p[f'norm{k}.{w}'] for k in (1, 2) for w in ('weight', 'bias')}})
        layers.append(layer)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    patches = nn.functional.unfold(x, 14, stride=14).transpose(1, 2)@state['patch_embed.proj.weight'].flatten(1).T + state['patch_embed.proj.bias']
    tokens = torch.cat([state['cls_token'].expand(2, -1, -1), patches], 1) + state['pos_embed']
    with torch.no_grad():
        for layer in layers: tokens = layer(tokens)
        expected = nn.functional.layer_norm(tokens[:,0], (128,), state['norm.weight'], state['norm.bias'], 1e-6)
        torch.testing.assert_close(DinoV2(state)(x), expected, rtol=1e-4, atol=1e-5)
    space = put(DINOV2, tmp_path, saved(state))
    images = pictures(3, 6)
    resized = nn.functional.interpolate(images[:,:,:1,:1].expand(-1, -1, 224, 224).float(), 224)               # a flat image stays flat under any resize
    normalised = (resized/255 - torch.tensor([.485,.456,.406])[:,None,None])/torch.tensor([.229,.224,.225])[:,None,None]
    with torch.no_grad(): torch.testing.assert_close(space.features(images[:,:,:1,:1].expand(-1, -1, 32, 32)), DinoV2(state)(normalised), rtol=1e-3, atol=1e-4)


def test_gaussian_pixels():
    "Images whose sixteen pixels are independent Gaussians: a closed form from end to end"
    gen = torch.Generator().manual_seed(0)
    (m1, m2), (s1, s2) = 100 + 50*torch.rand(2, 16, generator=gen), 5 + 20*torch.rand(2, 16, generator=gen)
    drawn = lambda m, s: (m + s*torch.randn(20_000, 16, generator=gen)).round().clamp(0, 255).to(torch.uint8).reshape(-1, 1, 4, 4)
    fd = Space('cells', 'gdpt-cells', 'mean', (('fd','fd'),))
    values, _ = protocol_values(given(drawn(m1, s1)), make_images('real', drawn(m2, s2)), [fd], n=20_000, blocks=1)
    assert values['fd20k'] == pytest.approx((((m1-m2)**2 + (s1-s2)**2).sum()/127.5**2).item(), rel=.02)


def test_full_covariances():
    "Two Gaussians that share no axes, by the trace of the root of a product, which for 2x2 matrices is a root of trace and determinant"
    a, b = (Features(2, torch.zeros(2, dtype=torch.float64), torch.tensor(c, dtype=torch.float64)) for c in ([[2.,1.],[1.,3.]], [[4.,-1.],[-1.,1.]]))
    product = a.cov@b.cov
    root = (product.trace() + 2*product.det().sqrt()).sqrt()
    assert compare(CONTRASTS, a, b)['fd_contrasts'] == pytest.approx((a.cov.trace() + b.cov.trace() - 2*root).item(), rel=1e-10)


def test_precision_and_recall_are_not_swapped():
    "Samples that are some of the real images: every one is good, and the other kind of image is missing. Real images that are some of the samples: the reverse"
    dark, middle, light = (pictures(100, 10+i, shift=s) for i, s in enumerate((-70, 0, 70)))
    narrow, _ = protocol_values(given(dark), make_images('real', torch.cat([dark, middle])), [CELLS], n=100, blocks=1)
    assert narrow['precision_cells100'] == 1 and .5 <= narrow['recall_cells100'] < .7
    wide, _ = protocol_values(given(dark, middle, light), make_images('real', middle), [CELLS], n=300, blocks=1)
    assert 1/3 <= wide['precision_cells300'] < .6 and wide['recall_cells300'] == 1


def test_blocks_of_seeds():
    "Each block is its own measurement, the value their mean; the generator is asked for consecutive seeds"
    data, pool, asked = make_images('real', pictures(80, 40)), pictures(150, 41), []
    def generate(seeds):
        asked.append(seeds)
        yield from pool[seeds.start:seeds.stop].split(20)
    values, protocol = protocol_values(generate, data, [CONTRASTS], n=50, ema=True)
    assert asked == [range(0, 50), range(50, 100), range(100, 150)] and protocol['seeds'] == ['0-49', '50-99', '100-149'] and protocol['samples'] == {'ema':True}
    each = [protocol_values(given(part), data, [CONTRASTS], n=50, blocks=1)[0]['fd_contrasts50'] for part in pool.split(50)]
    assert protocol['each'] == {'fd_contrasts50':pytest.approx(each)}
    assert values == pytest.approx({'fd_contrasts50':sum(each)/3, 'fd_contrasts50_min':min(each)})


def test_references(tmp_path, monkeypatch, capsys):
    "Computed once; again for other images, another tool or a file that is damaged; more images than are kept are visited in random order"
    data = make_images('real', torch.cat([pictures(100, 50+i, shift=60*i) for i in range(3)]))
    folder = tmp_path/'data'/'cache'/'references'
    files = lambda: sorted(folder.glob('*.safetensors'))
    first = reference(data, CELLS)
    monkeypatch.setattr(protocols, 'extract', None)                      # nothing is computed
    assert torch.equal(reference(data, CELLS).cov, first.cov)
    monkeypatch.undo(); monkeypatch.setenv('GDPT_ROOT', str(tmp_path))
    reference(make_images('other', data.images[:50]), CELLS)
    monkeypatch.setattr(protocols, 'version', lambda package: '0.0')
    reference(data, CELLS)
    assert len(files()) == 3
    monkeypatch.undo(); monkeypatch.setenv('GDPT_ROOT', str(tmp_path))
    for f in files(): f.write_bytes(f.read_bytes()[:-100])
    assert torch.equal(reference(data, CELLS).cov, first.cov) and 'computing it again' in capsys.readouterr().out
    monkeypatch.setattr(protocols, 'KEEP', 90)
    some = reference(make_images('more', data.images.flip(0)), CELLS)
    assert (some.n, len(some.features)) == (300, 90)
    torch.testing.assert_close(some.cov, first.cov, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(some.features.mean(0).double(), first.mu, rtol=0, atol=.1)          # not the 90 darkest


@pytest.mark.parametrize('space', [INCEPTION, CLIP, DINOV2], ids=lambda s: s.name)
def test_missing_weights(space, tmp_path):
    with pytest.raises(FileNotFoundError) as e: protocol_values(given(pictures(10, 0)), make_images('real', pictures(10, 1)), [space], n=10)
    said = str(e.value)
    assert space.file in said and str(tmp_path/'weights') in said and space.url in said and '\n' not in said
    (tmp_path/'weights'/space.file).write_bytes(b'something else')
    with pytest.raises(ValueError, match=f'expected {space.sha256[:16]}'): open_extractor(space, 'cpu')


class Brightness:
    "A judge without a network"
    name, checksum = 'brightness', 'b0'
    @property
    def facts(self): return dict(judge=self.name)
    def features(self, images): return nn.functional.adaptive_avg_pool2d(images.float(), 3).flatten(1)


class Contrast(Brightness):
    name, checksum = 'contrast', 'c0'
    def features(self, images): return nn.functional.adaptive_max_pool2d(images.float(), 2).flatten(1)


def test_judges_or_spaces():
    "One door for both: judges score as they always did, spaces by their own names, and floors have the values' names"
    samples, data = pictures(40, 60, side=8), make_images('real', pictures(50, 61, side=8))
    judges, spaces = [Brightness(), Contrast()], [CELLS, CONTRASTS]
    values, protocol = judged(judges, given(samples), data, 40, seed=3)
    assert values == measure(samples, data, judges) and (protocol['n'], protocol['samples']) == (40, {'seed':3}) and [j['judge'] for j in protocol['judges']] == [j.name for j in judges]
    assert parts_played(judges, 40)['fd'] == 'fd' and parts_played(spaces, 40) == {
        'fd':'fd_cells40', 'fd_alt':'fd_contrasts40', 'kid':'kid_cells40', 'precision':'precision_cells40', 'recall':'recall_cells40'}
    assert set(judged_floors(judges, data, 40, 2)['half']) == set(METRICS)
    for blocks in (1, 2):
        values, protocol = judged(spaces, given(samples, samples), data, 40, blocks, nfe=1)
        chance = judged_floors(spaces, data, 40, 2, blocks)
        assert set(chance['half']) == set(chance['bootstrap']) == set(values) and protocol['samples'] == {'nfe':1}
        assert all(len(v) == 2 and np.isfinite(v).all() for arm in chance.values() for v in arm.values())
    assert set(measure(samples, data, spaces)) == set(METRICS)           # a space where a judge is expected


def test_counts_are_kept():
    "A name never says more images than were compared"
    data = make_images('real', pictures(20, 70))
    with pytest.raises(ValueError, match=f'expected 10 to {KEEP}'): protocol_values(given(pictures(20, 71)), data, [CELLS], n=KEEP+1)
    with pytest.raises(ValueError, match='20 images were generated for 30 seeds'): protocol_values(given(pictures(20, 71)), data, [CELLS], n=30)
    with pytest.raises(ValueError, match='sizes must agree'): protocol_values(given(pictures(20, 71, side=16)), data, [CELLS], n=20)
