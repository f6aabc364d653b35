import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST = ['speed', 'studies', 'paper_tier', 'engines', 'resume', 'contributing', 'runs', 'trackers', 'projected', 'export', 'protocols', 'house', 'published']      # files in the order in which they start, so that two workers end together
SOURCES = ['gdpt', 'nbs', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE']


def pytest_collection_modifyitems(items):
    names = [f'test_{n}' for n in LONGEST]
    items.sort(key=lambda item: names.index(item.path.stem) if item.path.stem in names else len(names))      # a stable sort: within a file the order stays


def copy_sources(to, skip=()):
    "The tree that is in git, as far as building, exporting and running studies need it"
    for name in SOURCES:
        if name in skip: continue
        if (ROOT/name).is_dir(): shutil.copytree(ROOT/name, to/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
        else: shutil.copy2(ROOT/name, to/name)
    return to


def run(*command, cwd, path=ROOT, **env):
    "Run a command of this environment on the library under `path`; its output is the message when it fails"
    env = {**os.environ, 'PYTHONPATH':str(path), 'PATH':f'{Path(sys.executable).parent}:{os.environ["PATH"]}', **env}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode: pytest.fail(f'{" ".join(map(str, command))}\n{done.stdout}', pytrace=False)
    return done.stdout
