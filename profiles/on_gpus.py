"""Run a command on GPUs that no other job of this machine holds

    python profiles/on_gpus.py 1 COMMAND ...     on one GPU; 0: as it is, and so where there is no GPU

Each GPU has a lock file under its UUID, which is the same for all processes, also where Slurm shows a job only its own. The lock stays with the process
that becomes the command, so that it is free again however that ends. GDPT_JOBS_PER_GPU=2 lets two jobs share each GPU."""
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def visible():
    "Names of the GPUs that this process may use: `CUDA_VISIBLE_DEVICES` with UUIDs in place of numbers, else all of nvidia-smi"
    try: listed = subprocess.run(['nvidia-smi', '--query-gpu=index,uuid', '--format=csv,noheader'], capture_output=True, text=True)
    except FileNotFoundError: return []
    uuids = dict(line.split(', ') for line in listed.stdout.splitlines()) if listed.returncode == 0 else {}
    asked = os.environ.get('CUDA_VISIBLE_DEVICES')
    return [*uuids.values()] if asked is None else [uuids.get(i, i) for i in asked.replace(' ', '').split(',') if i not in ('', '-1')]


def lock(path):
    "An open file that is locked and survives `exec`; None if another process has it"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: return os.close(fd)
    os.set_inheritable(fd, True)
    return fd


def take(n, gpus, per_gpu, folder):
    "Wait for `n` different GPUs; all or none, so that two jobs that want several never wait for each other"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        held = {}
        for slot, gpu in ((s, g) for s in range(per_gpu) for g in gpus):
            if len(held) < n and gpu not in held and (fd := lock(folder/f'{gpu}.{slot}')) is not None: held[gpu] = fd
        if len(held) == n: return list(held)
        for fd in held.values(): os.close(fd)
        time.sleep(.5)


if __name__ == '__main__':
    n, command = int(sys.argv[1]), sys.argv[2:]
    if n and (gpus := visible()):
        if n > len(gpus): sys.exit(f'on_gpus: {n} GPUs wanted, {len(gpus)} here: {" ".join(gpus)}')
        taken = take(n, gpus, int(os.environ.get('GDPT_JOBS_PER_GPU', 1)), Path(tempfile.gettempdir())/f'gdpt-gpus-{os.getuid()}')
        os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(taken)
    os.execvp(command[0], command)
