"A run that was killed goes on bit by bit; a disk that fills up costs nothing that was saved"
import json
import os
import random
import shutil
import signal
import time

import pytest
from gdpt.checkpoints import file_checksum, load_tensors
from processes import PHASES, Running, finish

RUN = '--tier smoke --images 800 --batch-size 16'       # 50 steps of 16 images
EVERY = dict(log_steps=10)                              # five rows of the log, and a state is saved with each


def losses(folder): return [row.split(',')[:1] + row.split(',')[2:] for row in (folder/'log.csv').read_text().splitlines()]


def half_written(folder): return [p for p in folder.rglob('*') if p.suffix == '.part' or p.name[0] == '.' and p.suffix[1:].isdigit()]


# A life: all that a user does, in one process. Rows of the log are often ahead of the saved state, and a file takes .02 s to reach the disk, so that there is a while in which it is half there.
SHORT = '--tier smoke --images 256 --batch-size 16 --snapshots 64 --seed 3'
SLOW = dict(log_steps=2, save_seconds=.1, slow_disk=.02)


def life(root):
    lines = f'pretrain {SHORT} --out {root}/pre', f'finetune --denoiser {root}/pre --freeze 1 {SHORT} --out {root}/run', f'evaluate {root}/run'
    return Running(*lines, GDPT_ROOT=str(root), **SLOW)


def lived(process, until=lambda counts: False):
    "Look at a process every millisecond until it ends, or is killed when `until` says so; how often it was seen in each phase"
    seen = dict.fromkeys(PHASES, 0)
    while process.process.is_alive():
        seen[process.doing] += 1
        if until(seen):
            process.kill()
            break
        time.sleep(.001)
    return seen


def same(whole, cut):
    "Weights, states, losses and measurements, bit for bit; and nothing is left lying about"
    for run in 'pre', 'run':
        files = [p.relative_to(whole/run) for p in (whole/run).rglob('*.safetensors')]
        assert len(files) == 3 and {*files} == {p.relative_to(cut/run) for p in (cut/run).rglob('*.safetensors')}
        for f in files:
            a, b = (load_tensors(root/run/f)[0] for root in (whole, cut))
            assert a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a), f
        assert losses(whole/run) == losses(cut/run)
        assert len({json.loads((root/run/'DONE').read_text())['evaluations'] for root in (whole, cut)}) == 1
    assert (whole/'run'/'metrics.json').read_text() == (cut/'run'/'metrics.json').read_text()
    assert half_written(cut) == []


@pytest.mark.parametrize('kills', [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill(tmp_path, kills):
    "Killed at random moments while training, saving and evaluating, again and again until it is done: as if nothing had been"
    seed = int(os.environ.get('GDPT_TEST_SEED') or random.randrange(2**32))
    rng, died, lives = random.Random(seed), [], 1
    targets = [PHASES[1:][i % 3] for i in range(kills)]
    rng.shuffle(targets)
    try:
        whole = life(tmp_path/'whole')
        sights = lived(whole)
        assert whole.end()[0] == 0
        root, fresh = tmp_path/'1', True
        while True:
            target = targets[0] if targets else None
            moment = rng.randint(1, max(1, sights[target])) if target else None        # the n-th time that it is seen in this phase
            shutil.copytree(tmp_path/'whole'/'data'/'cache'/'floors', root/'data'/'cache'/'floors', dirs_exist_ok=True)       # what real images score: most of the time, and no part of a run
            process = life(root)
            seen = lived(process, lambda seen: target and seen[target] == moment)
            code, said = process.end()
            assert code in (0, -signal.SIGKILL), said
            if code:
                died.append(process.doing)
                if died[-1] == target: targets.pop(0)
            else:                                             # done before that moment came
                same(tmp_path/'whole', root)
                if fresh: sights = seen
                if not targets: break
                lives += 1
                assert lives < 10*kills, 'again and again, a life was over before its moment came'
                root = tmp_path/str(lives)
            fresh = not code
    except Exception as e: raise AssertionError(f'GDPT_TEST_SEED={seed}, killed while {", ".join(died)}: {e!r}') from e
    assert len(died) >= kills and {*died} >= {*PHASES[1:]}


def test_full_disk(tmp_path):
    line = f'pretrain {RUN} --out {tmp_path}/run'
    assert finish(line, **EVERY, dies_at=480)[0] == -signal.SIGKILL
    saved = file_checksum(tmp_path/'run'/'state.safetensors')
    code, err = finish(line, **EVERY, limit=300_000)
    message = [row for row in err.splitlines() if not row.startswith('run:')]
    assert code == 2 and len(message) == 1 and 'could not save' in message[0] and 'run again to go on' in message[0], err
    assert file_checksum(tmp_path/'run'/'state.safetensors') == saved
    assert [p.name for p in (tmp_path/'run').rglob('.*')] == ['.lock'], 'a half-written file was left'
    code, err = finish(line)
    assert code == 0, err
    assert (tmp_path/'run'/'DONE').exists()


def test_truncated_state(tmp_path):
    line = f'pretrain {RUN} --out {tmp_path}/run'
    finish(line, **EVERY, dies_at=320)
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
    ends = [p.end() for p in [Running(line) for _ in range(2)]]
    assert [code for code, _ in ends] == [0, 0], ends
    assert sum('waiting' in said for _, said in ends) <= 1
    assert len((tmp_path/'run'/'log.csv').read_text().splitlines()) == 1 + 2
