"What the notebooks cannot see about themselves: the library in step with them, importable alone, installable elsewhere"
import ast
import json
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from email import message_from_bytes
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT, copy_sources, run
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
STUDIES = [p for p in NOTEBOOKS if p.parent.name == 'studies']
MODULES = sorted(p.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.').removesuffix('.__init__') for p in (ROOT/'gdpt').rglob('*.py'))
HEAVY = {'torch_fidelity', 'peft', 'lpips', 'transformers', 'sklearn', 'pandas', 'matplotlib', 'pyarrow', 'diffusers', 'timm', 'torchvision', 'huggingface_hub', 'accelerate', 'tensorboard', 'wandb'}  # imported inside the functions that use them

name_of = lambda path: path.relative_to(ROOT/'nbs').as_posix()
cells_of = lambda path: [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
source_of = lambda cell: ''.join(cell['source'])


def python_files(folder): return {p.relative_to(folder).as_posix():p.read_text() for p in sorted(folder.rglob('*.py'))}


def test_export_is_in_step(tmp_path):
    copy_sources(tmp_path, skip=['gdpt'])
    run('nbdev_export', cwd=tmp_path, path=tmp_path)
    exported, ours = python_files(tmp_path/'gdpt'), python_files(ROOT/'gdpt')
    assert sorted(exported) == sorted(ours), 'a module without a notebook, or a notebook not exported: run `make export`'
    assert [f for f in ours if ours[f] != exported[f]] == [], 'these differ from their notebooks: run `make export`'


def test_notebooks_are_clean(tmp_path):
    copy_sources(tmp_path)
    run('nbdev_clean', cwd=tmp_path)
    assert [name_of(p) for p in NOTEBOOKS if p.read_bytes() != (tmp_path/'nbs'/name_of(p)).read_bytes()] == [], 'run `make export`'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_notebook_source(path):
    for cell in cells_of(path):
        assert not cell['outputs'] and cell['execution_count'] is None, 'outputs are not committed: run `make export`'
        assert not re.search(r'^\s*from\s+gdpt\S*\s+import\s+\*', source_of(cell), re.M), 'name what is imported from gdpt'


@pytest.mark.parametrize('path', STUDIES, ids=name_of)
def test_study_source(path):
    tagged = [source_of(c) for c in cells_of(path) if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1, 'papermill needs exactly one cell tagged `parameters`'
    for statement in ast.parse(tagged[0]).body:
        assert isinstance(statement, ast.Assign), f'parameters are assignments, not: {ast.unparse(statement)}'
        ast.literal_eval(statement.value)  # raises unless a literal: papermill does not recompute what is derived in this cell
    for cell in cells_of(path): assert not re.search(r'^#\|\s*(default_exp|export)', source_of(cell), re.M), 'studies export nothing'


def test_linter(): run('ruff', 'check', '--no-cache', 'gdpt', 'tests', 'docs', cwd=ROOT)


# each module in a process of its own, forked from one that has what all of them import, and nothing of ours
IMPORTS = """
import json, os, sys, traceback
import numpy, torch
for name in sys.argv[1:]:
    r, w = os.pipe()
    if not os.fork():
        try:
            __import__(name)
            said = sorted(sys.modules)
        except BaseException: said = traceback.format_exc()
        with os.fdopen(w, 'w') as f: json.dump(said, f)
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f: print(json.dumps([name, json.load(f)]))
    os.wait()
"""


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
    "Module -> everything that is loaded once it is imported by itself, or why it cannot be"
    return dict(map(json.loads, run(sys.executable, '-c', IMPORTS, *MODULES, cwd=tmp_path_factory.mktemp('imports')).splitlines()))


@pytest.mark.parametrize('module', MODULES)
def test_import_in_fresh_process(module, loaded):
    assert module in loaded[module], loaded[module]
    assert HEAVY & {*loaded[module]} == set()


def test_help_is_quick(tmp_path):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert 'pretrain' in run(sys.executable, '-m', 'gdpt', '--help', cwd=tmp_path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 3
    loaded = run(sys.executable, '-X', 'importtime', '-m', 'gdpt', '--help', cwd=tmp_path)
    assert not re.search(r'\|\s+torch$', loaded, re.M), '--help imports torch'


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    source = copy_sources(tmp_path_factory.mktemp('source'))
    run(sys.executable, '-m', 'build', '--no-isolation', cwd=source)               # the source archive, and the wheel out of it
    with tarfile.open(next((source/'dist').glob('*.tar.gz'))) as archive: assert {'LICENSE', 'README.md', 'pyproject.toml'} <= {n.split('/')[1] for n in archive.getnames() if '/' in n}
    return next((source/'dist').glob('*.whl'))


def metadata(wheel):
    with zipfile.ZipFile(wheel) as z: return message_from_bytes(z.read(next(n for n in z.namelist() if n.endswith('/METADATA'))))


def needed(requirements):
    "The installed distributions that these bring, with all that they need themselves"
    todo, found = list(requirements), {}
    while todo:
        wanted = Requirement(todo.pop())
        for extra in ('', *wanted.extras):
            key = canonicalize_name(wanted.name), extra
            if key in found or wanted.marker and not wanted.marker.evaluate(): continue
            found[key] = distribution(wanted.name)
            todo += [r for r in found[key].requires or [] if not (m := Requirement(r).marker) or m.evaluate({'extra':extra})]
    return {d.name:d for d in found.values()}.values()


def test_wheel_holds_every_module(wheel):
    with zipfile.ZipFile(wheel) as z: packed = {n for n in z.namelist() if n.endswith('.py')}
    assert packed == {f'gdpt/{f}' for f in python_files(ROOT/'gdpt')}


def test_wheel_declares_what_it_imports(wheel):
    imported = set()
    for source in python_files(ROOT/'gdpt').values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import): imported |= {a.name.split('.')[0] for a in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: imported.add(node.module.split('.')[0])
    imported -= sys.stdlib_module_names | {'gdpt'}
    declared = {canonicalize_name(Requirement(r).name) for r in metadata(wheel).get_all('Requires-Dist') if 'extra == "dev"' not in r}
    owners = packages_distributions()
    undeclared = {m for m in imported if not declared & {canonicalize_name(d) for d in owners.get(m, [m])}}
    assert undeclared == set(), 'imported by gdpt/ but not among the dependencies in pyproject.toml'


def test_wheel_runs_elsewhere_with_what_it_requires(wheel, tmp_path):
    "In an environment that has the wheel, its requirements and what these require, but nothing that an extra brings"
    run(sys.executable, '-m', 'venv', '--without-pip', 'env', cwd=tmp_path)
    python = tmp_path/'env'/'bin'/'python'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index', wheel, cwd=tmp_path, path='')  # unseen: this tree's own egg-info
    site = next((tmp_path/'env').glob('lib/python*/site-packages'))
    for lent in needed(r for r in metadata(wheel).get_all('Requires-Dist') if 'extra ==' not in r):
        for name in {f.parts[0] for f in lent.files if f.parts[0] not in ('..', '__pycache__')}:
            if not (site/name).exists(): (site/name).symlink_to(Path(lent.locate_file(name)).resolve())
    gdpt = lambda *words: run(tmp_path/'env'/'bin'/'gdpt', *words, cwd=tmp_path, path='', OMP_NUM_THREADS='1', GDPT_ROOT=str(tmp_path))
    assert gdpt('--version') == f"gdpt {metadata(wheel)['Version']}\n"
    assert 'pretrain' in gdpt('--help')
    code = """if True:
        import gdpt.objectives.gan, sys
        from gdpt.__main__ import main
        print(gdpt.objectives.gan.__file__)
        for line in ('pretrain --tier smoke --out pre', 'finetune --denoiser pre --freeze 1 --out one', 'sample one --n 9 --out x.png', 'evaluate one --n 100'): assert main(line.split()) == 0, line
        assert main(['results']) == 2"""
    said = run(python, '-c', code, cwd=tmp_path, path='', OMP_NUM_THREADS='1', GDPT_ROOT=str(tmp_path))
    assert said.startswith(str(site)) and 'precision' in said and (tmp_path/'x.png').exists()
    assert said.endswith("gdpt: this needs pandas, which is not installed: pip install pandas (it comes with gdpt's extra 'studies')\n")


def test_nothing_of_one_machine_is_committed():
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip('not a git checkout')
    texts = {f:(ROOT/f).read_bytes() for f in listed.stdout.split('\0') if f and (ROOT/f).is_file()}
    assert 'settings.ini' in texts
    local = re.compile(rb'/(work|root)/|index[-]url|[:]//\S*(/simple\b|pypi|pythonhosted|artifactory|nexus)')
    assert {f:m[0] for f,t in texts.items() if (m := local.search(t))} == {}
    assert '://' not in texts['requirements.txt'].decode()
