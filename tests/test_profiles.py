"Where jobs run: GPUs of one machine are shared out by locks, tried here on GPUs that a made-up nvidia-smi lists"
import os
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from conftest import ROOT

ON_GPUS = ROOT/'profiles'/'on_gpus.py'
# what a job does: says when it has which GPU, for some time
JOB = 'import os, sys, time; print(os.environ.get("CUDA_VISIBLE_DEVICES"), time.monotonic(), flush=True); time.sleep(float(sys.argv[1])); print(time.monotonic())'


@pytest.fixture
def start(tmp_path):
    "Starts jobs on a machine with two GPUs"
    smi = tmp_path/'bin'/'nvidia-smi'
    smi.parent.mkdir()
    smi.write_text('#!/bin/sh\necho "0, GPU-aa"\necho "1, GPU-bb"\n')
    smi.chmod(0o755)
    base = {k:v for k, v in os.environ.items() if k not in ('CUDA_VISIBLE_DEVICES', 'GDPT_JOBS_PER_GPU')} | {'PATH':f'{smi.parent}:{os.environ["PATH"]}', 'TMPDIR':str(tmp_path)}

    def start(n, seconds, **env):
        return subprocess.Popen([sys.executable, ON_GPUS, str(n), sys.executable, '-c', JOB, str(seconds)], env=base | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return start


@contextmanager
def held(jobs):
    "The GPUs of jobs that all run at the same time"
    try: yield [j.stdout.readline().split()[0] for j in jobs]
    finally:
        for j in jobs:
            j.kill()
            j.communicate()


def spans(jobs):
    "(GPUs, from, to) of each"
    said = [j.communicate(timeout=60)[0].split() for j in jobs]
    assert all(j.returncode == 0 for j in jobs)
    return [(gpus.split(','), float(a), float(b)) for gpus, a, b in said]


def together(found, gpu):
    "The most jobs that had a GPU at one time"
    mine = [(a, b) for gpus, a, b in found if gpu in gpus]
    return max((sum(a <= t < b for a, b in mine) for t, _ in mine), default=0)


def test_one_job_per_gpu(start):
    found = spans([start(1, .3) for _ in range(5)])
    assert all(len(gpus) == 1 for gpus, *_ in found)
    assert together(found, 'GPU-aa') == together(found, 'GPU-bb') == 1


def test_sharing_is_asked_for(start):
    with held([start(1, 600, GDPT_JOBS_PER_GPU='2') for _ in range(4)]) as gpus: assert sorted(gpus) == ['GPU-aa', 'GPU-aa', 'GPU-bb', 'GPU-bb']


def test_several_gpus(start):
    "Jobs that want both GPUs take turns and do not block each other"
    found = spans([start(2, .2) for _ in range(3)] + [start(1, .2)])
    assert sorted(len(gpus) for gpus, *_ in found) == [1, 2, 2, 2]
    assert together(found, 'GPU-aa') == together(found, 'GPU-bb') == 1
    job = start(3, 0)
    assert job.communicate(timeout=30)[1].strip() == 'on_gpus: 3 GPUs wanted, 2 here: GPU-aa GPU-bb' and job.returncode == 1


def test_what_is_visible(start):
    "A job sees no more than its surroundings do; without a GPU, or without wanting one, it runs as it is"
    of = lambda job: job.communicate(timeout=30)[0].split()[0]
    assert of(start(1, 0, CUDA_VISIBLE_DEVICES='1')) == 'GPU-bb'
    assert of(start(1, 0, CUDA_VISIBLE_DEVICES='GPU-cc')) == 'GPU-cc'
    assert of(start(0, 0)) == 'None'
    assert of(start(1, 0, CUDA_VISIBLE_DEVICES='-1')) == '-1'
    assert of(start(1, 0, PATH='/nowhere')) == 'None'


def test_killed_job_gives_its_gpu_back(start):
    jobs = [start(1, 600), start(1, 600)]
    with held(jobs) as gpus:
        assert sorted(gpus) == ['GPU-aa', 'GPU-bb']
        waiting = start(1, 0)
        time.sleep(1)
        assert waiting.poll() is None
        jobs[0].kill()
        assert waiting.communicate(timeout=60)[0].split()[0] == gpus[0]


@pytest.mark.parametrize('profile, options, gpus', [('gpus', ['--resources', 'gpu=2'], 1), ('gpus', ['--resources', 'gpu=0'], 0), ('slurm', [], 1)])
def test_dry_run(profile, options, gpus):
    "Snakemake reads the profile, and a tier of natural images asks for a GPU per job, where there are any"
    if profile == 'slurm': pytest.importorskip('snakemake_executor_plugin_slurm')
    command = [sys.executable, '-m', 'snakemake', '--profile', f'profiles/{profile}', *options, '-n', '-p', '--nolock', '--config', 'tier=small', 'study=pretrain']
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert f'profiles/on_gpus.py {gpus} ' in done.stdout
