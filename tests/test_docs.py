"The site: every notebook and module is on it, comments are read as nbdev reads them, outputs are what ran, no link is dead"
import importlib.util
import inspect
import json
from importlib import import_module

import pytest
import yaml
from conftest import ROOT, run
from fastcore.docments import docments

spec = importlib.util.spec_from_file_location('hooks', ROOT/'docs'/'hooks.py')
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)

NOTEBOOKS = hooks.repository_files('nbs/**/*.ipynb')
MODULES = [m for m in hooks.repository_files('gdpt/**/*.py') if hooks.exported(m)]


def test_menu_names_every_notebook_and_module():
    nav = yaml.safe_load((ROOT/'mkdocs.yml').read_text())['nav']
    pages = hooks.leaves(list(hooks.entries(nav, set(hooks.leaves(nav)))))
    assert len(pages) == len(set(pages)) and len(NOTEBOOKS) > 40 and 'gdpt/__main__.py' in MODULES
    assert {hooks.page_of(p) for p in NOTEBOOKS + MODULES} - set(pages) == set()


@pytest.mark.parametrize('name', ['sampling', 'report', 'tiers'])
def test_comments_are_those_of_docments(name):
    "An independent reader of the same comments, on every function and dataclass of a module"
    path, module = f'gdpt/{name}.py', import_module(f'gdpt.{name}')
    said, compared = hooks.comments((ROOT/path).read_text()), 0
    for node in hooks.tree(path).body:
        if not isinstance(node, (hooks.ast.FunctionDef, hooks.ast.ClassDef)): continue
        if getattr(getattr(node, 'args', None), 'kwarg', None): continue           # docments takes the comment on `**rest` for the returned value's
        thing = getattr(module, node.name)
        if inspect.isclass(thing) and not hasattr(thing, '__dataclass_fields__'): continue
        theirs = {('returns' if k == 'return' else k):v for k,v in docments(thing).items() if v}
        ours = {n.lstrip('*'):c for n,_,_,c in hooks.parameters(node, said) if c}
        compared += len(theirs)
        assert {k:ours.get(k) for k in theirs} == {k:v.lstrip('# ') for k,v in theirs.items()}, node.name
    assert compared > 15


def test_outputs_are_of_the_notebook_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(hooks, 'ROOT', tmp_path)
    code = lambda source, outputs=(), tags=(): dict(cell_type='code', source=source, metadata=dict(tags=list(tags)), outputs=list(outputs))
    drawn = dict(output_type='display_data', data={'image/png':'AAAA', 'text/plain':'<Figure>'})
    nb = dict(cells=[code("tier = 'tiny'", tags=['parameters']), code('draw()')])
    copy = dict(cells=[nb['cells'][0], code("tier = 'tiny'", tags=['injected-parameters']), code('draw()', [drawn])],
                metadata=dict(papermill=dict(end_time='2026-11-21T13:15:07+00:00', exception=None, parameters=dict(tier='tiny'))))
    folder = tmp_path/'data'/'runs'/'tiny'/'notebooks'
    folder.mkdir(parents=True)
    (folder/'pretraining.ipynb').write_text(json.dumps(copy))
    assert hooks.executed(nb, 'pretrain') == (None, None)
    found, said = hooks.executed(nb, 'pretraining')
    assert found == copy and 'executed by `make reproduce` on 21 November 2026' in said
    nb['cells'][1] = code('draw_otherwise()')
    assert hooks.executed(nb, 'pretraining') == (None, None)


def test_dead_links_are_found(tmp_path):
    (tmp_path/'sub').mkdir()
    (tmp_path/'a.html').write_text('<h1 id="top">a</h1><a href="sub/b.html#there">b</a><a href="#top">top</a><a href="https://example.org">out</a>')
    (tmp_path/'sub'/'b.html').write_text('<p id="there"></p><a href="../a.html">a</a><a href="/a.html">a</a>')
    assert hooks.dead_links(tmp_path) == []
    (tmp_path/'sub'/'b.html').write_text('<a href="../a.html#bottom">a</a><img src="x.png"><a href="c.html">c</a><script src="https://example.org/x.js"></script>')
    assert hooks.dead_links(tmp_path) == ['a.html -> sub/b.html#there: no such place on the page', 'sub/b.html -> ../a.html#bottom: no such place on the page',
                                          'sub/b.html -> c.html: no such file', 'sub/b.html -> x.png: no such file', 'sub/b.html loads https://example.org/x.js from elsewhere']


def test_the_site_builds(tmp_path):
    "As `make docs` does: a warning, a dead link among them, ends it"
    run('mkdocs', 'build', '--quiet', '--strict', '--site-dir', tmp_path, cwd=ROOT, NO_MKDOCS_2_WARNING='1')
    for path in NOTEBOOKS + MODULES: assert (tmp_path/hooks.page_of(path)).with_suffix('.html').exists()
    page = (tmp_path/'nbs'/'03_denoiser.html').read_text()
    assert '<math' in page and 'arithmatex' not in page and 'id="source-edm_scalings"' in page
    assert not any('{#' in (tmp_path/hooks.page_of(m)).with_suffix('.html').read_text() for m in MODULES)       # all of a heading's mark was understood
    assert 'lowest level, image units' in (tmp_path/'api'/'gdpt.sampling.html').read_text()
    found = json.loads((tmp_path/'search'/'search_index.json').read_text())['docs']
    assert any(d['location'] == 'api/gdpt.sampling.html#gdpt.sampling.heun' for d in found)
