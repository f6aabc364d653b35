"Every format gives the same images; damaged, foreign and hostile files are named; a preparation that is killed goes on; mapped images train as loaded ones do"
import gzip
import hashlib
import http.server
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gdpt import data as gdata
from gdpt import datasets
from gdpt.checkpoints import load_tensors
from gdpt.data import PREPARED, load_images, make_images, open_source
from gdpt.datasets import DATASETS, Dataset, Resize, download, prepare, prepare_named
from gdpt.runs import pretrain
from gdpt.tiers import get_tier
from PIL import Image

N = 20
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(N)//2  # sorted, so that class folders keep the order
NAMES = [f'{i//10:05d}/img{i:08d}.png' for i in range(N)]


def png(x, **kw):
    f = io.BytesIO()
    Image.fromarray(x.transpose(1, 2, 0)).save(f, 'png', **kw)
    return f.getvalue()


def make_tar(path, files):
    with tarfile.open(path, 'w:gz') as tar:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def make_zip(path, files):
    with zipfile.ZipFile(path, 'w') as z:
        for name, raw in files.items(): z.writestr(name, raw)
    return path


def batch(pixels, labels):
    "A batch of CIFAR-10's python version, as Python 2 pickled it"
    word = lambda s: b'U' + bytes([len(s)]) + s
    array = b'cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nK\x00\x85' + word(b'b') + b'\x87R(K\x01K' + bytes([len(pixels)]) + b'M\x00\x0c\x86cnumpy\ndtype\n' + word(b'u1') \
        + b'K\x00K\x01\x87R(K\x03' + word(b'|') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T' + struct.pack('<I', pixels.size) + pixels.tobytes() + b'tb'
    numbers = b''.join(b'K' + bytes([n]) for n in labels)
    return b'\x80\x02}q\x01(' + word(b'batch_label') + word(b'training batch') + word(b'labels') + b']q\x03(' + numbers + b'e' + word(b'data') + array + word(b'filenames') + b'](' + word(b'a.png')*len(labels) + b'eu.'


@pytest.fixture(scope='module')
def formats(tmp_path_factory):
    "The same images in every format"
    root = tmp_path_factory.mktemp('formats')
    for i in range(N):
        for file in (root/'classes'/f'c{LABELS[i]}'/f'{i:02d}.png', root/'edm'/NAMES[i]):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(PIXELS[i]))
    listed = json.dumps({'labels':[[NAMES[i], int(LABELS[i])] for i in random.Random(0).sample(range(N), N)]})
    (root/'edm'/'dataset.json').write_text(listed)
    make_zip(root/'edm.zip', {NAMES[i]:png(PIXELS[i]) for i in reversed(range(N))} | {'dataset.json':listed})
    np.savez(root/'nchw.npz', images=PIXELS, labels=LABELS)
    np.savez_compressed(root/'nhwc.npz', PIXELS.transpose(0, 2, 3, 1), LABELS)
    table = pa.table({'img':[{'bytes':png(x), 'path':None} for x in PIXELS], 'label':LABELS})
    pq.write_table(table, root/'hub.parquet')
    (root/'hub'/'plain_text').mkdir(parents=True)
    pq.write_table(table[:3], root/'hub'/'plain_text'/'test-00000-of-00001.parquet')
    for i, rows in enumerate((table[:9], table[9:])): pq.write_table(rows, root/'hub'/'plain_text'/f'train-0000{i}-of-00002.parquet', row_group_size=4)
    fifths = [(PIXELS[i:i+4].reshape(4, -1), LABELS[i:i+4]) for i in range(0, N, 4)]
    make_tar(root/'binary.tar.gz', {f'cifar-10-batches-bin/data_batch_{i+1}.bin':np.c_[y[:, None].astype(np.uint8), x].tobytes() for i, (x, y) in enumerate(fifths)})
    make_tar(root/'python.tar.gz', {f'cifar-10-batches-py/data_batch_{i+1}':batch(x, y) for i, (x, y) in enumerate(fifths)} | {'cifar-10-batches-py/readme.html':b''})
    return root


FORMATS = 'classes', 'edm', 'edm.zip', 'nchw.npz', 'nhwc.npz', 'hub.parquet', 'hub', 'binary.tar.gz', 'python.tar.gz'


@pytest.mark.parametrize('name', FORMATS)
def test_formats_agree(formats, tmp_path, name):
    ours = make_images('ours', torch.from_numpy(PIXELS), torch.from_numpy(LABELS))
    loaded = load_images(formats/name)
    assert loaded.checksum == ours.checksum and loaded.images.equal(ours.images) and loaded.labels.equal(ours.labels)
    prepared = prepare(formats/name, tmp_path/'set', spec=Dataset(N, Resize(32, channels=3), 10, '', (), lossless=True))
    assert prepared.checksum == ours.checksum and load_images(tmp_path/'set').images.equal(ours.images)
    assert sorted(p.name for p in (tmp_path/'set').iterdir()) == ['data.json', 'images.npy', 'labels.npy']
    assert not list(tmp_path.glob('.*.part'))


@pytest.mark.parametrize('name', [f for f in FORMATS if '.' in f])
def test_damaged(formats, tmp_path, name):
    "Cut off anywhere or changed anywhere, a file is read rightly or named"
    whole, rng = (formats/name).read_bytes(), np.random.default_rng(len(name))
    file, named = tmp_path/name, 0
    for i in range(40):
        at = int(rng.integers(len(whole)))
        raw = whole[:at] if i % 2 else whole[:at] + rng.bytes(int(rng.integers(1, 20))) + whole[at+9:]
        file.write_bytes(raw)
        try: open_source(file).load()
        except ValueError as e:
            assert len(str(e).splitlines()) == 1 and name.split('.')[0] in str(e), e
            named += 1
    assert named >= 20  # all that were cut off


def test_hostile_archives(tmp_path, monkeypatch):
    for name in ('../../escaped.png', '/escaped.png', 'a/../../../escaped.png'):
        inside = tmp_path/'x'/'y'
        inside.mkdir(parents=True, exist_ok=True)
        assert load_images(make_zip(inside/f'{len(name)}.zip', {name:png(PIXELS[0])})).n == 1  # a name like any other; nothing is unpacked
    assert not list(tmp_path.rglob('escaped*')) and not Path('/escaped.png').exists()
    with zipfile.ZipFile(tmp_path/'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('zeros.png', bytes(2**20))
    monkeypatch.setattr(gdata, 'MAX_MEMBER', 2**16)
    with pytest.raises(ValueError, match='claims 1,048,576 bytes'): load_images(tmp_path/'bomb.zip')
    monkeypatch.setattr(gdata, 'CIFAR_BYTES', 2**16)
    with gzip.open(tmp_path/'bomb.tar.gz', 'wb') as f: f.write(bytes(2**22))
    with pytest.raises(ValueError, match='bomb.tar.gz'): load_images(tmp_path/'bomb.tar.gz')
    chunk = lambda kind, body: struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    huge = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(1000)))
    (tmp_path/'huge').mkdir()
    (tmp_path/'huge'/'huge.png').write_bytes(huge)
    with pytest.raises(ValueError, match='huge.png: not an image'): load_images(tmp_path/'huge')
    with zipfile.ZipFile(tmp_path/'twice.zip', 'w') as z, pytest.warns(UserWarning):
        for _ in range(2): z.writestr('a.png', png(PIXELS[0]))
    with pytest.raises(ValueError, match='two members of one name'): load_images(tmp_path/'twice.zip')


def test_named_sets_refuse_others(formats, tmp_path):
    spec = Dataset(N, Resize(32, channels=3), 10, 'the real one', (), lossless=True)
    with pytest.raises(ValueError, match='holds 20 images, expected 21: the real one'): prepare(formats/'edm.zip', tmp_path/'a', spec=replace(spec, n=21))
    with pytest.raises(ValueError, match='has 10 classes from 0 to 9, expected 9'): prepare(formats/'edm.zip', tmp_path/'a', spec=replace(spec, classes=9))
    table = [{'bytes':jpeg(x), 'path':None} for x in PIXELS]
    pq.write_table(pa.table({'img':table, 'label':LABELS}), tmp_path/'jpeg.parquet')
    with pytest.raises(ValueError, match='never compressed'): prepare(tmp_path/'jpeg.parquet', tmp_path/'a', spec=spec)
    prepare(tmp_path/'jpeg.parquet', tmp_path/'honest')
    assert 'compressed with loss' in json.loads((tmp_path/'honest'/'data.json').read_text())['notes'][0]
    assert not (tmp_path/'a').exists()
    with pytest.raises(ValueError, match='was prepared otherwise .source jpeg.parquet there, edm.zip here; stamp'): prepare(formats/'edm.zip', tmp_path/'honest')


def test_out_inside_its_own_source(tmp_path, capsys):
    "It would be one more image, and the next call would find another source"
    from gdpt.__main__ import main
    (tmp_path/'raw').mkdir()
    for i in range(3): (tmp_path/'raw'/f'{i}.png').write_bytes(png(PIXELS[i]))
    for out in tmp_path/'raw'/'done', tmp_path/'raw'/'a'/'b', tmp_path/'x'/'..'/'raw'/'done':
        assert main(['data', str(tmp_path/'raw'), '--out', str(out)]) == 2
        assert 'lies inside its own source' in capsys.readouterr().err
    assert len([*(tmp_path/'raw').iterdir()]) == 3
    for _ in range(2): assert main(['data', str(tmp_path/'raw'), '--out', str(tmp_path/'raw-done')]) == 0


def jpeg(x):
    f = io.BytesIO()
    Image.fromarray(x.transpose(1, 2, 0)).save(f, 'jpeg')
    return f.getvalue()


def test_resize_by_hand(tmp_path):
    "Against Pillow called directly: EDM's crop of ImageNet and its reduction of FFHQ, Dhariwal & Nichol's crop"
    rng, lanczos = np.random.default_rng(1), Image.Resampling.LANCZOS
    (tmp_path/'raw').mkdir()
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3)[:2+rgb], dtype=np.uint8)) for h, w, rgb in [(75, 90, 1), (90, 41, 1), (333, 500, 1), (64, 64, 1), (50, 31, 1), (70, 71, 0)]]
    for i, im in enumerate(images): im.save(tmp_path/'raw'/f'{i}.png')
    edm = prepare(tmp_path/'raw', tmp_path/'edm', Resize(32, 'center', channels=3), workers=3)
    for im, x in zip(images, edm.images):
        a, side = np.asarray(im.convert('RGB')), min(im.size)
        top, left = (a.shape[0]-side)//2, (a.shape[1]-side)//2
        assert np.array_equal(x.permute(1, 2, 0), Image.fromarray(a[top:top+side, left:left+side]).resize((32, 32), lanczos))
    adm = prepare(tmp_path/'raw', tmp_path/'adm', Resize(32, 'dhariwal', channels=3))
    halved = images[2].resize((250, 166), Image.Resampling.BOX).resize((125, 83), Image.Resampling.BOX).resize((62, 41), Image.Resampling.BOX)
    assert np.array_equal(adm.images[2].permute(1, 2, 0), np.asarray(halved.resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40])
    shutil.copytree(tmp_path/'raw', tmp_path/'square', ignore=lambda _, names: [f for f in names if f != '3.png'])
    whole = prepare(tmp_path/'square', tmp_path/'ffhq', DATASETS['ffhq64'].resize)
    assert np.array_equal(whole.images[0].permute(1, 2, 0), images[3])
    half = prepare(tmp_path/'square', tmp_path/'half', Resize(32))
    assert np.array_equal(half.images[0].permute(1, 2, 0), images[3].resize((32, 32), lanczos))


# blocks of eight images, each delayed, so that a kill finds work to interrupt
SLOW = '''
import sys, time, gdpt.datasets as d
d.BLOCK, real = 8, d.resized
def resized(*args):
    time.sleep(.004)
    return real(*args)
d.resized = resized
from gdpt.__main__ import main
sys.exit(main(sys.argv[1:]))
'''


def kill_after(line, folder, blocks):
    process = subprocess.Popen([sys.executable, '-c', SLOW, *line.split()], stderr=subprocess.PIPE, text=True, env={**os.environ, 'GDPT_PROGRESS':'plain'})
    listed = folder/'blocks.jsonl'
    while process.poll() is None and (not listed.exists() or len(listed.read_text().splitlines()) < blocks): time.sleep(.002)
    time.sleep(random.random()*.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode


def test_kill(tmp_path, monkeypatch):
    rng = np.random.default_rng(2)
    for i in range(600):
        file = tmp_path/'raw'/f'class{i*3//600}'/f'{i:03d}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(rng.integers(0, 256, (3, 12+i % 3, 12), dtype=np.uint8)))
    for _ in range(10):
        killed = kill_after(f'data {tmp_path}/raw --resolution 8 --crop center --workers 1 --out {tmp_path}/set', tmp_path/'.set.part', random.randrange(10, 50))
        if killed: break
        shutil.rmtree(tmp_path/'set')                                                          # done before it could be killed
    assert killed == -signal.SIGKILL and not (tmp_path/'set').exists()
    monkeypatch.setattr(datasets, 'BLOCK', 8)
    listed, decoded, real = tmp_path/'.set.part'/'blocks.jsonl', [], datasets.resized
    kept = len(listed.read_text().splitlines())
    assert kept >= 10
    with (tmp_path/'.set.part'/'images.npy').open('ab') as f: f.write(b'half a block')          # written, but not yet listed
    with listed.open('a') as f: f.write('{"sha256": "12')                                      # half a line
    monkeypatch.setattr(datasets, 'resized', lambda *args: decoded.append(0) or real(*args))
    prepare(tmp_path/'raw', tmp_path/'set', Resize(8, 'center'))
    assert len(decoded) == 600 - 8*kept
    monkeypatch.setattr(datasets, 'BLOCK', 256)
    prepare(tmp_path/'raw', tmp_path/'other'/'set', Resize(8, 'center'), workers=3)
    files = [sorted((p.name, p.read_bytes()) for p in (tmp_path/d).iterdir()) for d in ('set', 'other/set')]
    assert files[0] == files[1] and len(files[0]) == 3


def test_full_disk(formats, tmp_path, monkeypatch):
    real, calls = os.fsync, []
    def full(fd):
        calls.append(fd)
        if len(calls) == 3: raise OSError(28, 'No space left on device')
        real(fd)
    monkeypatch.setattr(datasets, 'BLOCK', 4)
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left on device. With room on the disk the same command goes on after 8 images'): prepare(formats/'edm.zip', tmp_path/'set')
    assert not (tmp_path/'set').exists()
    assert prepare(formats/'edm.zip', tmp_path/'set').checksum == load_images(formats/'edm.zip').checksum
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: type(real_usage)(0, 0, 1000))
    with pytest.raises(OSError, match='needs 0.00 GiB and 0.00 GiB are free: make room'): prepare(formats/'edm.zip', tmp_path/'new')


real_usage = shutil.disk_usage('/')


def test_mapped_images_train_as_loaded_ones(tmp_path):
    digits = load_images('digits')
    np.savez(tmp_path/'digits.npz', images=digits.images.numpy(), labels=digits.labels.numpy())
    mapped = prepare(tmp_path/'digits.npz', tmp_path/'digits')
    assert (mapped.checksum, mapped.sigma_data) == (digits.checksum, digits.sigma_data)
    config = replace(get_tier('smoke').pretrain, images=64)
    runs = [pretrain(replace(config, data=source), folder=tmp_path/name) for name, source in [('a', 'digits'), ('b', str(tmp_path/'digits'))]]
    a, b = (load_tensors(r/'state.safetensors')[0] for r in runs)
    assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def test_larger_than_memory(tmp_path):
    "A set of the size of ImageNet (a file of holes) opens at once and takes no memory to speak of"
    n, header = 1_281_167, io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr='|u1', fortran_order=False, shape=(n, 3, 64, 64)))
    with (tmp_path/'images.npy').open('wb') as f:
        f.write(header.getvalue())
        f.truncate(len(header.getvalue()) + n*12_288)
        f.seek(len(header.getvalue()) + 1_000_000*12_288)
        f.write(PIXELS.tobytes())
    (tmp_path/'data.json').write_text(json.dumps(dict(format=PREPARED, name='holes', shape=[n, 3, 64, 64], classes=0, checksum='0'*64)))
    process = psutil.Process()
    before, start = process.memory_info().rss, time.monotonic()
    data = load_images(tmp_path)
    assert (data.n, data.shape, data.images.numel()) == (n, (3, 64, 64), 15_742_980_096)
    picked = data.images[torch.tensor([1_000_000, 5, 1_000_001])]
    assert np.array_equal(picked[[0, 2]].flatten(), PIXELS.reshape(-1)[:2*12_288]) and picked[1].max() == 0
    assert process.memory_info().rss - before < 2**27 and time.monotonic() - start < 5


class Server(http.server.BaseHTTPRequestHandler):
    "Sends `body`, but breaks off after `most` bytes; knows ranges or not"
    body, most, ranges = b'', None, True
    def do_GET(self):
        start = int(re.search(r'\d+', self.headers['Range'])[0]) if self.ranges and 'Range' in self.headers else 0
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(self.body) - start))
        self.end_headers()
        self.wfile.write(self.body[start:][:self.most])
    def log_message(self, *args): pass


@pytest.mark.parametrize('ranges', [True, False])
def test_download(formats, tmp_path, monkeypatch, ranges):
    monkeypatch.setenv('GDPT_ROOT', str(tmp_path))
    body = (formats/'binary.tar.gz').read_bytes()
    handler = type('Handler', (Server,), dict(body=body, most=len(body)//3, ranges=ranges))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/binary.tar.gz'
    spec = Dataset(N, Resize(32, channels=3), 10, 'it', ('binary.tar.gz',), url, (hashlib.md5(body).hexdigest(),), lossless=True)
    monkeypatch.setitem(DATASETS, 'ours', spec)
    with pytest.raises(OSError, match='the connection ended after .* the same command goes on'): prepare_named('ours')
    handler.most = None
    assert prepare_named('ours').checksum == load_images(formats/'edm.zip').checksum
    assert sorted(p.name for p in (tmp_path/'data').iterdir() if p.name[0] != '.') == ['downloads', 'ours']
    handler.body = body[:-1] + b'x'
    with pytest.raises(ValueError, match='the published file has'): download(url, tmp_path/'again.tar.gz', spec.md5[0])
    server.shutdown()
    server.server_close()
    shutil.rmtree(tmp_path/'data')
    with pytest.raises(OSError, match='cannot download .*: put the file at .*downloads/binary.tar.gz by hand, or name a copy by --source') as e: prepare_named('ours')
    assert len(str(e.value).splitlines()) == 1
