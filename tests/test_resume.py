"A run that was killed goes on bit by bit; a disk that fills up costs nothing that was saved"
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from gdpt.checkpoints import file_checksum, load_tensors

# states are saved at every log interval, so that a kill finds something to go on from
SCRIPT = 'import sys, gdpt.training as t; t.SAVE_SECONDS = 0.; from gdpt.__main__ import main; sys.exit(main(sys.argv[1:]))'
IMAGES = 2_400  # 150 steps of 16 images, six log intervals
RUN = f'--tier smoke --images {IMAGES} --batch-size 16'
FILES = 'state.safetensors', 'snapshots/00000064.safetensors', f'snapshots/{IMAGES:08d}.safetensors'


def start(line, limit=None):
    "A `gdpt` process; `limit` bytes are the most that it may write to one file"
    shrink = limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    return subprocess.Popen([sys.executable, '-c', SCRIPT, *line.split()], preexec_fn=shrink, stderr=subprocess.PIPE, text=True, env={**os.environ, 'GDPT_PROGRESS':'plain'})


def finish(line, **kw):
    process = start(line, **kw)
    _, err = process.communicate()
    return process.returncode, err


def kill_after(line, folder, rows):
    "Kill the process without warning once its log has this many rows, at whatever it is doing then"
    process, log = start(line), folder/'log.csv'
    while process.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < rows+1): time.sleep(.002)
    time.sleep(random.random()*.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode


def losses(folder): return [row.split(',')[:1] + row.split(',')[2:] for row in (folder/'log.csv').read_text().splitlines()]


@pytest.fixture(scope='module')
def denoiser(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pre')/'run'
    code, err = finish(f'pretrain --tier smoke --images 320 --out {folder}')
    assert code == 0, err
    return folder


@pytest.mark.parametrize('command', ['pretrain', 'finetune --freeze 1'])
def test_kill(tmp_path, denoiser, command):
    line = f'{command} {RUN} --snapshots 64 --seed 3' + f' --denoiser {denoiser}'*command.startswith('finetune')
    code, err = finish(f'{line} --out {tmp_path}/whole')
    assert code == 0, err
    rng, killed = random.Random(), 0
    for rows in sorted(rng.sample(range(1, 5), 2)): killed += kill_after(f'{line} --out {tmp_path}/cut', tmp_path/'cut', rows) == -signal.SIGKILL
    assert killed, 'no kill came in time'
    assert not (tmp_path/'cut'/'DONE').exists()
    code, err = finish(f'{line} --out {tmp_path}/cut')
    assert code == 0, err
    for f in FILES:
        a, b = (load_tensors(tmp_path/k/f)[0] for k in ('whole', 'cut'))
        assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a), f
    assert losses(tmp_path/'whole') == losses(tmp_path/'cut')


def test_full_disk(tmp_path):
    line = f'pretrain {RUN} --out {tmp_path}/run'
    assert kill_after(line, tmp_path/'run', 3) == -signal.SIGKILL
    saved = file_checksum(tmp_path/'run'/'state.safetensors')
    code, err = finish(line, limit=300_000)
    message = [row for row in err.splitlines() if not row.startswith('run:')]
    assert code == 2 and len(message) == 1 and 'could not save' in message[0] and 'run again to go on' in message[0], err
    assert file_checksum(tmp_path/'run'/'state.safetensors') == saved
    assert [p.name for p in (tmp_path/'run').rglob('.*')] == ['.lock'], 'a half-written file was left'
    code, err = finish(line)
    assert code == 0, err
    assert (tmp_path/'run'/'DONE').exists()


def test_truncated_state(tmp_path):
    line = f'pretrain {RUN} --out {tmp_path}/run'
    kill_after(line, tmp_path/'run', 2)
    state = tmp_path/'run'/'state.safetensors'
    whole = state.read_bytes()
    state.write_bytes(whole[:len(whole)//2])
    code, err = finish(line)
    assert code == 2 and len(err.splitlines()) == 1 and f'{state} is damaged' in err, err
    state.write_bytes(whole)
    code, err = finish(line)
    assert code == 0, err


def test_two_processes(tmp_path):
    "Both are asked for the same run: one trains, the other waits and finds it done"
    line = f'pretrain {RUN} --out {tmp_path}/run'
    both = [start(line) for _ in range(2)]
    errors = [p.communicate()[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], errors
    assert sum('waiting' in e for e in errors) <= 1
    assert len((tmp_path/'run'/'log.csv').read_text().splitlines()) == 1 + 6
