"Processes that begin at once: forked from one that has imported the libraries, though nothing of `gdpt`. They are real ones, with an exit status, and killed for real"
import os
import resource
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

FORKS = get_context('forkserver')
FORKS.set_forkserver_preload(['torch', 'accelerate', 'pandas', 'sklearn.datasets', 'torch_fidelity'])
PHASES = 'elsewhere', 'training', 'saving', 'evaluating'


def gdpt(lines, err, env, limit, log_steps, save_seconds, dies_at, slow_disk, phase):
    "In the process: commands one after another, until one fails"
    for fd, path in ((1, os.devnull), (2, err)): os.dup2(os.open(path, os.O_WRONLY), fd)
    os.environ.update(env, GDPT_PROGRESS='plain', OMP_NUM_THREADS='1')
    if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    from gdpt import runs, training
    from gdpt.__main__ import main
    if log_steps: training.LOG_STEPS, training.SAVE_SECONDS = log_steps, save_seconds
    advance, evaluate, fsync = training.Learner.advance, runs.evaluate, os.fsync

    def enter(name): phase.value = PHASES.index(name)

    def watched_advance(self, batch):
        if self.nimg == dies_at: os.kill(os.getpid(), signal.SIGKILL)
        enter('training')
        return advance(self, batch)

    def watched_evaluate(*args, **kw):
        enter('evaluating')
        values = evaluate(*args, **kw)
        enter('elsewhere')
        return values

    def slow_fsync(fd):
        before = PHASES[phase.value]
        enter('saving')
        time.sleep(slow_disk)
        fsync(fd)
        enter(before)

    training.Learner.advance, runs.evaluate, os.fsync = watched_advance, watched_evaluate, slow_fsync
    for line in lines:
        if status := main(line.split()): sys.exit(status)


class Running:
    "Commands that a process of its own is working on"
    def __init__(self, *lines,
        limit=None,           # bytes that it may write to one file
        log_steps=None,       # steps between two rows of the log; None: as always
        save_seconds=0.,      # ... and the time between two saved states; 0: with every row
        dies_at=None,         # images seen, at which it is killed without warning
        slow_disk=0.,         # seconds that every file takes to reach the disk
        **env,
    ):
        handle, self.err = tempfile.mkstemp()
        os.close(handle)
        self.phase = FORKS.RawValue('i', 0)
        self.process = FORKS.Process(target=gdpt, args=(lines, self.err, env, limit, log_steps, save_seconds, dies_at, slow_disk, self.phase))
        self.process.start()

    @property
    def doing(self): return PHASES[self.phase.value]

    def kill(self): os.kill(self.process.pid, signal.SIGKILL)

    def end(self):
        "Wait for it; (exit status, what it said on stderr)"
        self.process.join()
        said = Path(self.err).read_text()
        os.unlink(self.err)
        return self.process.exitcode, said


def finish(*lines, **how): return Running(*lines, **how).end()


def team(line, size=2, **how):
    "The same command on several processes that work together, as `torch.distributed.run` starts them"
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        shared = dict(WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(s.getsockname()[1]))
    members = [Running(line, **how, **shared, RANK=str(i), LOCAL_RANK=str(i)) for i in range(size)]
    while any(m.process.is_alive() for m in members):
        if any(m.process.exitcode for m in members):          # one has failed: the others may wait for it for ever
            for m in members:
                m.process.join(5)
                m.process.kill()
        time.sleep(.01)
    ends = [m.end() for m in members]
    return next((code for code, _ in ends if code), 0), '\n'.join(said for _, said in ends)
