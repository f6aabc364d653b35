"The projected discriminator against a plain transcription of its description, with weights from files, in training, and on the paper's own networks"
from dataclasses import replace

import pytest
import torch
from gdpt.augment import make_augment
from gdpt.checkpoints import save_tensors
from gdpt.data import load_images, to_float
from gdpt.denoiser import Denoiser
from gdpt.objectives.gan import GAN, GAN_LOSSES, per_image, r1_penalty
from gdpt.objectives.reuse import ReusedFakes
from gdpt.projected import ProjectedDiscriminator, open_backbone, weights_file
from gdpt.tiers import NetConfig, get_tier
from gdpt.training import Batch, Draw, Learner, learner_state, restore_learner
from gdpt.unet import make_net
from torch import nn
from torch.nn import functional as F

timm = pytest.importorskip('timm')
RGB = NetConfig(resolution=32, channels=3)
SMALL = ('test_efficientnet', 'test_vit')
TAPS = {'test_efficientnet':(1,2,3,4), 'test_vit':(0,2,3,5), 'vgg16_bn':(1,2,3,4), 'tf_efficientnet_lite0':(1,2,3,4)}


class Plain(nn.Module):
    "PAPER.md section 3, line by line: batch norms on their own, normalised at full size, enlarged before it is mixed, PyTorch's spectral norm"
    def __init__(self, disc, names, models, resolution):
        super().__init__()
        self.disc,self.names,self.models,self.resolution = disc,names,nn.ModuleList(models),resolution
        self.convs,self.theirs = {},nn.ModuleList()
        for m in disc.modules():
            if hasattr(m, 'u'):
                c = nn.utils.spectral_norm(nn.Conv2d(m.in_channels, m.out_channels, m.kernel_size, m.stride, m.padding, bias=False)).eval()
                c.weight_orig.data.copy_(m.weight)
                c.weight_u.copy_(m.u), c.weight_v.copy_(m.v)
                self.convs[m] = c
                self.theirs.append(c)

    def mixed(self, name, model, mixing, images):
        cfg = model.pretrained_cfg
        mean,std = (torch.tensor(cfg[k])[:,None,None] for k in ('mean','std'))
        x = (F.interpolate((images+1)/2, size=(self.resolution,)*2, mode='bilinear', align_corners=False) - mean)/std
        maps,h = model.forward_intermediates(x, indices=TAPS[name], intermediates_only=True, stop_early=True),None
        for k in (3,2,1,0):
            x = mixing.across_channels[k](maps[k] if mixing.sizes is None else mixing.sizes[k](maps[k]))
            h = mixing.across_scales[k](F.interpolate(x if h is None else x+h, scale_factor=2, mode='bilinear', align_corners=True))
            yield k,h

    def features(self, images): return [h for parts in zip(self.names, self.models, self.disc.mixings) for _,h in sorted(self.mixed(*parts, images), key=lambda p: p[0])]

    def forward(self, images, class_labels=None): return self.judged(self.features(images))

    def judged(self, features):
        out = []
        for x,head in zip(features, self.disc.heads):
            for conv,norm,_ in head.blocks: x = F.leaky_relu(F.batch_norm(self.convs[conv](x), None, None, norm.weight, norm.bias, training=True), .2)
            out.append(self.convs[head.logit](x)[:,0])
        return out


def trained(name):
    "A timm model whose batch norms know their input, as after training: with random statistics all images would look alike to it"
    torch.manual_seed(1)
    model = timm.create_model(name).requires_grad_(False)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms: m.momentum,_,_ = 1., m.weight.uniform_(.8, 1.5), m.bias.uniform_(-.2, .2)
    if norms: model.train().forward_intermediates(F.interpolate(torch.randn(8, 3, 16, 16), size=96, mode='bilinear'), intermediates_only=True)
    return model.eval()


def both(folder, names, resolution, **how):
    "The discriminator on weights from files, and its plain transcription"
    models = [trained(n) for n in names]
    for n,m in zip(names, models): save_tensors(weights_file(n, folder), m.state_dict())
    disc = ProjectedDiscriminator(RGB, names, folder, resolution, **how)
    return disc, Plain(disc, names, models, resolution)


loss = lambda logits: per_image(logits, GAN_LOSSES['non_saturating'][2]).sum()


def close(a, b, tolerance=1e-5): assert (a-b).abs().max() <= tolerance*b.abs().max(), ((a-b).abs().max()/b.abs().max()).item()


def test_equals_plain_transcription(tmp_path):
    "Logits in fp32; gradients in fp64, where rounding moves no activation across the kink of a ReLU, at which they jump"
    disc,plain = both(tmp_path, SMALL, 160)
    images = torch.rand(4, 3, 32, 32)*2 - 1
    for a,b in zip(disc(images), plain(images)): close(a, b)
    disc.double(), plain.double()
    grads = []
    for d in disc,plain:
        x = images.double().requires_grad_()
        loss(d(x)).backward()
        grads.append(x.grad)
    close(*grads, 1e-6)              # folding rounds weights to fp32
    close(r1_penalty(disc, images.double()), r1_penalty(plain, images.double()), 1e-5)


@pytest.mark.slow
def test_paper_networks(tmp_path):
    "Sizes and counts; rounding errors in fp32 as small as those of the plain transcription"
    names = ('vgg16_bn','tf_efficientnet_lite0')
    disc,plain = both(tmp_path, names, 224)
    assert [b.channels for b in disc.backbones] == [[128,256,512,512], [24,40,112,320]]
    width = (3,64,64,128,128,256,256,256,512,512,512,512,512,512)
    assert sum(p.numel() for p in disc.backbones[0].parameters()) == sum(9*i*o + o for i,o in zip(width, width[1:]))     # norms are folded, the classifier is gone
    image = torch.rand(1, 3, 32, 32)*2 - 1
    with torch.no_grad():
        ours,theirs = disc.frozen_features(image),plain.features(image)
        logits,expected = disc(ours),plain.judged(theirs)
        exact = plain.double().features(image.double())
    assert [tuple(l.shape) for l in logits] == [(1,11,11)]*4 + [(1,4,4)]*4
    for a,b,x in zip(ours, theirs, exact): assert (a-x).norm() <= 1.5*(b-x).norm()
    torch.testing.assert_close(loss(logits), loss(expected), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_deit():
    disc = ProjectedDiscriminator(RGB, ('deit_base_distilled_patch16_224',), 'random')
    x = torch.rand(1, 3, 64, 64).requires_grad_()
    logits = disc(x.expand(2, -1, -1, -1))
    assert [tuple(l.shape) for l in logits] == [(2,4,4)]*4
    assert [m.shape[1:] for m in disc.frozen_features(x.detach())] == [(64,112,112), (64,56,56), (128,28,28), (256,14,14)]
    assert torch.autograd.grad(sum(l.sum() for l in logits), x)[0].abs().sum() > 0


def test_files_are_read_with_one_line_errors(tmp_path):
    both(tmp_path, ('test_efficientnet',), 128)
    path = weights_file('test_efficientnet', tmp_path)
    whole = path.read_bytes()
    for broken in (b'', whole[:len(whole)//2], b'\x80\x04.' + whole[3:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match='put back a whole copy') as e: ProjectedDiscriminator(RGB, ('test_efficientnet',), tmp_path, 128)
        assert '\n' not in str(e.value)


def test_no_download_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path/'hub'))
    monkeypatch.setenv('GDPT_ROOT', str(tmp_path))
    with pytest.raises(ValueError, match="discriminator='encoder'") as e: open_backbone('test_vit')
    assert f'put them at {tmp_path}' in str(e.value) and '\n' not in str(e.value)


WHOLE,HALF = {torch.float32},{torch.bfloat16}


@pytest.mark.parametrize('precision, autocast, frozen, heads', [('fp32', False, WHOLE, WHOLE), ('fp32', True, WHOLE, WHOLE), ('bf16', False, HALF, WHOLE), ('bf16', True, HALF, HALF)])
def test_precision_within_autocast(precision, autocast, frozen, heads):
    "What each part computes in; fp32 has the numbers of a training without autocast, R1's among them, for images that come in bf16 too"
    disc = ProjectedDiscriminator(RGB, SMALL, 'random', 160, precision=precision)
    seen = {'backbones':set(), 'mixings':set(), 'heads':set()}
    for part in seen:
        for m in (m for top in getattr(disc, part) for m in top.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
            m.register_forward_hook(lambda m, args, out, part=part: seen[part].add(out.dtype))
    images = (torch.rand(2, 3, 32, 32)*2 - 1).bfloat16().float()
    outside = disc(images),[r1_penalty(disc, images)]
    for s in seen.values(): s.clear()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        features,within = disc.frozen_features(images),(disc(images),[r1_penalty(disc, images)])
        assert {m.dtype for m in features} == (heads if precision == 'bf16' else WHOLE)
        again,rounded = disc([m.detach() for m in features]),disc(images.bfloat16()) if precision == 'fp32' else within[0]
    assert seen == {'backbones':frozen, 'mixings':frozen, 'heads':heads}
    assert {l.dtype for l in within[0]} == WHOLE
    for a,b,c in zip(within[0], again, rounded): assert a.equal(b) and a.equal(c)
    if precision == 'fp32' or not autocast: assert all(a.equal(b) for two in zip(outside, within) for a,b in zip(*two))


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_fakes_used_twice_within_autocast(precision):
    config = replace(get_tier('smoke').arms['d2o_reuse'], batch_size=2, shard_size=2, images=64, sigma_data=.75, precision='bf16', disc_precision=precision)
    objective = ReusedFakes(Denoiser(make_net(config.net), .75), ProjectedDiscriminator(config.net, SMALL, 'random', 160, precision=precision), config)
    one = Learner(objective, config)
    batch = Batch(to_float(load_images('digits').images[:2]), None)
    with torch.autocast('cpu', torch.bfloat16):
        for name in 'discriminator', 'generator':
            assert objective.loss(name, batch, Draw(0)).dtype == torch.float32
            assert {m.dtype for kept in objective.kept for m in kept} == ({torch.float32 if precision == 'fp32' else torch.bfloat16} if objective.kept else set())
    before = [p.clone() for p in objective.generator.parameters()]
    one.advance(batch)
    assert any(not p.equal(q) for p,q in zip(before, objective.generator.parameters()))


def learner(disc_seed=0, augment='none'):
    config = replace(get_tier('smoke').arms['d2o'], batch_size=2, shard_size=1, images=64, r1_every=1, sigma_data=.75)
    torch.manual_seed(disc_seed)
    disc = ProjectedDiscriminator(config.net, ('test_efficientnet',), 'random', 128)
    disc.augment = make_augment(augment)
    return Learner(GAN(Denoiser(make_net(config.net), .75), disc, config), config)


def test_training_goes_on_bitwise_from_its_state():
    digits = load_images('digits')
    batches = [Batch(to_float(digits.images[2*i:2*i+2]), None) for i in range(2)]
    one = learner()
    frozen = {k:t.clone() for k,t in one.objective.disc.state_dict().items() if k.startswith('mixings')}
    for i,batch in enumerate(batches):
        if i == 1: state = {k:t.clone() for k,t in learner_state(one).items()}
        one.advance(batch)
    assert not any('model' in k or 'backbone' in k for k in state if k.startswith('discriminator'))
    two = learner(disc_seed=1)                              # other weights and another mixing, until the state is put back
    restore_learner(two, state, 1)
    for batch in batches[1:]: two.advance(batch)
    end,again = learner_state(one),learner_state(two)
    assert all(torch.equal(end[k], again[k]) for k in end) and end.keys() == again.keys()
    assert any(not torch.equal(end[k], state[k]) for k in state if 'heads' in k)
    assert all(torch.equal(t, one.objective.disc.state_dict()[k]) for k,t in frozen.items())


def test_backbones_move_with_the_module_and_learn_nothing():
    disc = ProjectedDiscriminator(RGB, ('test_efficientnet',), 'random', 128).requires_grad_(True).train()
    params = list(disc.backbones[0].parameters())
    assert params and not any(p.requires_grad for p in params) and not disc.backbones[0].model.training
    assert {p.device.type for b in disc.to('meta').backbones for p in b.parameters()} == {'meta'}
