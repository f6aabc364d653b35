"""What mkdocs cannot know: pages out of notebooks, out of docstrings and their comments, and out of tables and figures; equations; dead links.

Nothing is executed and nothing of gdpt imported, so that the site is built from a checkout alone, in seconds. Paths are those of the repository:
links between README, notebooks and figures hold on the site as they stand.
"""
import ast, base64, csv, html, io, json, logging, os, re, tokenize
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
TIER = 'tiny'                                                # the one whose tables and figures are tracked
GUIDES = {'guides/objective.md':'An objective', 'guides/cluster.md':'On a cluster'}      # pages of their own, out of CONTRIBUTING
SHOWN = {'d2o':('Fréchet distance over real images seen', 'All measures at the end of training'), 'pretrain':('All measures at the end of training',),
         'verdicts':('The claims of the paper',)}            # sections of RESULTS.md on a study's page, beside that of its arms
ROWS = 80                                                    # longer tables are linked, not shown
ALONE = '---\nhide: [navigation]\n---\n\n'                  # the only page of its tab
log = logging.getLogger('mkdocs.gdpt')                       # --strict counts its warnings


# --- the list of pages

def repository_files(pattern):
    "Files of the repository by pattern, sorted, without what is nobody's page"
    return [p for p in sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob(pattern)) if not re.search(r'(^|/)([.]|_(?!_main))', p)]

def page_of(path):
    "Where a notebook or a module has its page"
    return re.sub(r'\.ipynb$', '.md', path) if path.endswith('.ipynb') else f"api/{module_name(path)}.md"

def module_name(path): return path.removesuffix('.py').replace('/', '.')

def title_of(path):
    "What the menu calls a page"
    if path.endswith('.py'): return module_name(path).removeprefix('gdpt.').replace('__main__', 'cli (__main__)')
    return re.match(r'# (?:Study: |objectives: )?(.*)', ''.join(json.loads((ROOT/path).read_text())['cells'][0]['source']))[1]

def entries(nav, named):
    "The nav of mkdocs.yml with its patterns filled in by what no other entry names"
    for item in nav:
        (title,value), = item.items() if isinstance(item, dict) else [(None,item)]
        if isinstance(value, list): yield {title:list(entries(value, named))}
        elif '*' in value: yield from ({title_of(p):page_of(p)} for p in in_order(value) if p not in named)
        elif value.endswith('.ipynb'): yield {title or title_of(value):page_of(value)}
        else: yield item

def in_order(pattern):
    "Notebooks by name; modules that export something, in the order of their notebooks"
    found = repository_files(pattern)
    return found if not pattern.endswith('.py') else sorted((p for p in found if exported(p)), key=lambda p: (notebook_of(p).count('/'), notebook_of(p)))

def leaves(nav): return [l for i in nav for l in ([i] if isinstance(i, str) else leaves(sum(([v] if isinstance(v, str) else v for v in i.values()), [])))]

def on_config(config):
    config.nav = list(entries(config.nav, set(leaves(config.nav))))
    return config

def on_files(files, config):
    pages = dict.fromkeys(leaves(config.nav))
    readme,contributing = (ROOT/'README.md').read_text(), (ROOT/'CONTRIBUTING.md').read_text()
    made = {'index.md':ALONE + readme, 'RESULTS.md':ALONE + (ROOT/'RESULTS.md').read_text(), 'CHANGELOG.md':(ROOT/'CHANGELOG.md').read_text()}
    for name,title in GUIDES.items():
        part = section(contributing, title)
        contributing,made[name] = contributing.replace(part, ''),re.sub(r'^#(?=#+ )', '', part, flags=re.M)
    made['CONTRIBUTING.md'] = contributing
    for path in repository_files('nbs/**/*.ipynb'): made |= notebook_page(path, pages)
    for path in repository_files('gdpt/**/*.py'):
        if exported(path): made[page_of(path)] = module_page(path)
    made['api/index.md'] = api_index()
    for path,content in made.items(): files.append(File.generated(config, path, content=content))
    for path in repository_files(f'figures/{TIER}/*.png') + repository_files(f'data/{TIER}/*.csv'): files.append(File.generated(config, path, abs_src_path=str(ROOT/path)))
    return files


# --- Markdown

def section(text, title):
    "A section of a Markdown page with its heading, up to the next one that is as high; empty where there is none"
    found = re.search(rf'^(#+) {re.escape(title)}\n(?:(?!\1 |#{{1,2}} ).*\n?)*', text, re.M)
    return found[0] if found else ''

def csv_table(text):
    "A table of numbers as it lies in git, for readers: text as it is, numbers to four digits"
    number = lambda v: f'{float(v):.4g}' if re.fullmatch(r'-?\d+\.\d+(e[+-]?\d+)?', v) else v
    head,*rows = csv.reader(io.StringIO(text))
    cells = lambda tag,row: '<tr>' + ''.join(f'<{tag}>{html.escape(number(c))}</{tag}>' for c in row) + '</tr>'
    return f"<table><thead>{cells('th', head)}</thead><tbody>{''.join(cells('td', r) for r in rows)}</tbody></table>"

def fenced(code, *classes):
    "A block of code, whatever is in it"
    fence = '`'*max(3, 1 + max(map(len, re.findall('`+', code)), default=0))
    return f"{fence} {{.{' .'.join(classes)}}}\n{code}\n{fence}"


# --- notebooks

def notebook_page(path, pages):
    "Files of one notebook: its page, and the pictures of its outputs"
    nb = json.loads((ROOT/path).read_text())
    study = Path(path).stem if '/studies/' in path else None
    copy,where = executed(nb, study) if study else (None,None)
    kept = [p for k in ('data/{}/*.csv', 'figures/{}/*.png') for p in repository_files(k.format(TIER)) if owner(p) == study]
    made,parts = {},[ALONE] if path == 'nbs/index.ipynb' else []
    for i,cell in enumerate((copy or nb)['cells']):
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': parts.append(re.sub(r'(\]\([^)\s]*)\.ipynb\b', r'\1.md', source))
        elif not re.search(r'^#\| *(hide|default_exp)', source, re.M) and source.strip():
            parts += code_cell(source, path)
            if study and not copy: parts += [left(p) for p in kept if saved_by(source, p)]
            kept = [p for p in kept if not saved_by(source, p)]
        for j,output in enumerate(cell.get('outputs', [])): parts.append(output_block(output, f'{Path(path).stem}-{i}-{j}.png', Path(path).parent, made))
        if i == 0: parts.append(note(path, study, where))
    if study and not copy: parts += tier_outputs(study, kept)
    return {page_of(path):'\n\n'.join(parts).lstrip(), **made}

def code_cell(source, path):
    "Code without nbdev's directives; what goes into the library is marked and can be linked"
    is_exported = re.search(r'^#\| *export', source, re.M)
    code = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')
    if not is_exported: return [fenced(code, 'python')]
    anchors = ''.join(f'<a class="definition" id="source-{n}"></a>' for node in ast.parse(code).body for n in names(node))
    return [*([anchors] if anchors else []), fenced(code, 'python', 'exported')]

def note(path, study, where):
    "Under the title: what the reader is looking at"
    lab = f'Run it yourself: `make lab`, then `{path}`.'
    if not study:
        module = next((m for m in repository_files('gdpt/**/*.py') if exported(m) and notebook_of(m) == path), None)
        up = '../'*(path.count('/'))
        return f'!!! note ""\n    {f"Cells with a bar on the left are the module [`{module_name(module)}`]({up}{page_of(module)}). " if module else ""}{lab}'
    return f'!!! note "Where the outputs come from"\n    {where or f"Tables and figures under the cells that write them, and [at the end]({anchor()}), are those committed in `data/{TIER}`, `figures/{TIER}` and `RESULTS.md`, written at tier `{TIER}`; nothing was executed for this page."} {lab}'

def anchor(): return f'#outputs-at-tier-{TIER}'

def executed(nb, study):
    "The copy that `make reproduce` left on this machine, if it is of today's notebook, and what to say of it"
    same = lambda n: [''.join(c['source']) for c in n['cells'] if 'injected-parameters' not in c['metadata'].get('tags', []) and ''.join(c['source']).strip()]
    for path in sorted((ROOT/f'data/runs/{TIER}/notebooks').glob(f'{study}*.ipynb')):
        if path.name.split('.')[0] != study: continue
        copy = json.loads(path.read_text())
        said = copy['metadata'].get('papermill', {})
        if same(copy) == same(nb) and not said.get('exception') and said.get('end_time'):
            values = ', '.join(f'{k}={v!r}' for k,v in said.get('parameters', {}).items())
            return copy, f'This notebook was executed by `make reproduce` on {datetime.fromisoformat(said["end_time"]):%d %B %Y}, with {values}; its outputs stand below each cell.'
    return None,None

def output_block(output, name, folder, made):
    "One output of a cell, in the richest form that a page can show"
    data = output.get('data', {'text/plain':output.get('text', '')})
    text = lambda kind: ''.join(data[kind]).replace(str(ROOT), '.')
    if 'image/png' in data:
        made[(folder/name).as_posix()] = base64.b64decode(''.join(data['image/png']))
        return f'![output]({name})'
    if 'text/html' in data: return f"<div class=\"output\">{re.sub(r'<style.*?</style>|border=.1. |class=.dataframe.', '', text('text/html'), flags=re.S)}</div>".replace('\n\n', '\n')
    if output['output_type'] == 'error' or 'text/plain' not in data: return ''
    plain = re.sub(r'\x1b\[[0-9;]*m|^.*\r(?!\n)', '', text('text/plain'), flags=re.M).strip('\n')
    return fenced(plain, 'text', 'output') if plain and not plain.startswith('<Figure') else ''

def owner(path):
    "The study that a table or figure is named after"
    studies = sorted((Path(p).stem for p in repository_files('nbs/studies/*.ipynb')), key=len)
    return next((s for s in reversed(studies) if re.match(rf'{s}(_|$)', Path(path).stem)), None)

def saved_by(source, path):
    "Does this cell write this table or figure? By the name that it gives it, in which {...} stands for anything"
    writes,name = ('with_name(', Path(path).name) if path.endswith('.csv') else ('save_figure(', Path(path).stem)
    return writes in source and any(re.fullmatch(re.sub(r'{\w+}', r'\\w+', w), name) for w in re.findall(r"'([\w{}.]+)'", source))

def left(path):
    "A table or figure that is in git; a long table is a link"
    if path.endswith('.png'): return f'![{Path(path).stem}](../../{path})'
    text = (ROOT/path).read_text()
    rows = text.count('\n') - 1
    return f'??? example "Table {path}, {rows} rows"\n    [as a file](../../{path})\n\n    {csv_table(text)}' if rows <= ROWS else f'Table [{path}](../../{path}), {rows:,} rows.'

def tier_outputs(study, kept):
    "What a study has left in git beside what its cells name: sections of RESULTS.md, other tables and figures"
    results = (ROOT/'RESULTS.md').read_text()
    sections = [re.sub(r'^#+', '###', s, flags=re.M) for t in (*SHOWN.get(study, ()), f'Arms of study `{study}`') if (s := section(results, t).split('\n### ')[0])]
    nothing = f'Beside what is shown above, nothing of this study is committed at tier `{TIER}`; the rows that it leaves are in [data/{TIER}/results.csv](../../data/{TIER}/results.csv).'
    return [f'## Outputs at tier {TIER}', *(sections + [left(p) for p in kept] or [nothing])]


# --- the library: signatures and comments, as fastcore's docments reads them

def tree(path): return ast.parse((ROOT/path).read_text())

def names(node):
    "What a statement defines"
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]

def exported(path): return next((ast.literal_eval(n.value) for n in tree(path).body if names(n) == ['__all__']), [])

def notebook_of(path):
    "The notebook that a module was exported from"
    said = re.search(r'File to edit: \S*?nbs/(\S+\.ipynb)', (ROOT/path).read_text())
    return f'nbs/{said[1]}' if said else 'nbs/index.ipynb'

def comments(source):
    "Line -> comment on it"
    return {t.start[0]:t.string.lstrip('# ').strip() for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT and t.string[:2] != '#|'}

def parameters(node, said):
    "Name, type, default and comment of each parameter of a function or field of a class, the returned value last"
    if isinstance(node, ast.ClassDef): return [(f.target.id, f.annotation, f.value, said.get(f.lineno, '')) for f in node.body if isinstance(f, ast.AnnAssign)]
    a = node.args
    usual = [*a.posonlyargs, *a.args]
    listed = [*zip(usual, [None]*(len(usual)-len(a.defaults)) + a.defaults), *([(a.vararg,None)] if a.vararg else []), *zip(a.kwonlyargs, a.kw_defaults), *([(a.kwarg,None)] if a.kwarg else [])]
    last = {arg.lineno:arg for arg,_ in listed}              # several on one line: the comment is the last one's
    rows = [(('*' if arg is a.vararg else '**' if arg is a.kwarg else '') + arg.arg, arg.annotation, default, said.get(arg.lineno, '') if last[arg.lineno] is arg else '')
            for arg,default in listed if arg.arg not in ('self', 'cls')]
    closing = node.returns.lineno if node.returns else next((l for l in range(max([node.lineno, *last]), node.body[0].lineno) if l not in last and l in said), 0)
    returned = said.get(closing, '') if closing not in last else ''
    return rows + ([('returns', node.returns, None, returned)] if node.returns or returned else [])

def code(node): return f'<code>{html.escape(ast.unparse(node))}</code>' if node else ''

def prose(text, here):
    "One line of a docstring or comment; what is named as code and exported somewhere is a link"
    word = lambda w: f'<a href="{where}"><code>{html.escape(w)}</code></a>' if (where := link(w, here)) else f'<code>{html.escape(w)}</code>'
    return ''.join(word(p) if i % 2 else html.escape(p) for i,p in enumerate(text.split('`')))

def link(name, here, index={}):
    "Where an exported name is documented; a short one must be of this module, or of one only"
    if not index: index.update({f'{module_name(p)}.{n}':module_name(p) for p in repository_files('gdpt/**/*.py') for n in exported(p)})
    found = [n for n in index if n == name or n == f'{here}.{name}'] or [n for n in index if n.endswith(f'.{name}')]
    return f'{index[found[0]]}.html#{place(found[0])}' if len(found) == 1 else ''

def place(name):
    "Where a name is on its page; two underscores would be read as bold type"
    return name.replace('__', '')

def parameter_table(rows, here):
    if not any(r[3] for r in rows): return ''
    lines = [f"<tr><td>{'<em>returns</em>' if n == 'returns' else f'<code>{n}</code>'}</td><td>{code(t)}</td><td>{code(d)}</td><td>{prose(c, here)}</td></tr>" for n,t,d,c in rows]
    return f"<table><thead><tr><th>name</th><th>type</th><th>default</th><th>meaning</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"

def signature(node, owner=''):
    "A definition's head, without bodies and comments; its parameters on lines of their own where one would be long"
    if isinstance(node, ast.ClassDef): return f"class {node.name}" + (f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else '')
    returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
    line = f"{owner}{node.name}({ast.unparse(node.args)}){returns}"
    if len(line) <= 110: return line
    listed = re.split(r', (?=[*\w]+(?::|=|,|$))', ast.unparse(node.args))
    return f'{owner}{node.name}(\n' + ''.join(f'    {p},\n' for p in listed) + f'){returns}'

def symbol(node, said, path, source):
    "The entry of one exported definition"
    here = module_name(path)
    defined,*others = names(node)
    also = ''.join(f'<a id="{place(f"{here}.{n}")}"></a>' for n in others)
    origin = f'{also}[source](../{page_of(notebook_of(path))}#source-{defined}){{.source}}'
    head = lambda level,text,name: f'{level} `{text}` {{#{place(name)}}}'
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        value = ast.get_source_segment(source, node)
        shown = value if value.count('\n') < 12 else '\n'.join(value.split('\n')[:12]) + '\n    ...'
        same = f'<p>{prose(said[node.end_lineno], here)}</p>' if node.end_lineno in said else ''
        return [head('##', ', '.join([defined, *others]), f'{here}.{defined}'), origin, same, fenced(shown, 'python')]
    parts = [head('##', defined, f'{here}.{defined}'), origin, fenced(signature(node), 'python'), f'<p>{prose(ast.get_docstring(node) or "", here)}</p>', parameter_table(parameters(node, said), here)]
    for m in node.body if isinstance(node, ast.ClassDef) else ():
        if not isinstance(m, ast.FunctionDef) or (m.name[0] == '_' and m.name not in ('__init__', '__call__')): continue
        doc,table = ast.get_docstring(m),parameter_table(parameters(m, said), here)
        if m.name == '__init__': parts.insert(3, fenced(signature(m), 'python')); parts.append(table)
        elif doc or table: parts += [head('###', f'{defined}.{m.name}', f'{here}.{defined}.{m.name}'), fenced(signature(m), 'python'), f'<p>{prose(doc or "", here)}</p>', table]
    return parts

def module_page(path):
    "The page of one module: all that it exports, in the order in which it is defined"
    source,public = (ROOT/path).read_text(), set(exported(path))
    body,said = ast.parse(source), comments(source)
    here = f'[`{notebook_of(path)}`](../{page_of(notebook_of(path))})'
    parts = [f'# {module_name(path)}', f'> {ast.get_docstring(body)}', f'!!! note ""\n    Written as the notebook {here}, which explains it and runs it. `from {module_name(path)} import ...`']
    for node in body.body:
        if public & set(names(node)): parts += symbol(node, said, path, source)
    return '\n\n'.join(p for p in parts if p)

def api_index():
    rows = [f'| [`{module_name(p)}`]({module_name(p)}.md) | {ast.get_docstring(tree(p))} | {len(exported(p))} |' for p in in_order('gdpt/**/*.py')]
    return '\n'.join(['# API', '', 'The library, module by module, in the order in which they build on each other. What a parameter means stands beside it, with its unit and shape.', '',
                      '| module | what it is for | names |', '|---|---|--:|', *rows])


# --- after mkdocs

def on_page_content(content, page, config, files):
    "Equations as MathML, which browsers draw themselves; figures, saved at 300 dots per inch for print, at about half their dots"
    wide = lambda m: f'{m[0]} width="{round(.55*int.from_bytes((ROOT/m[1]).read_bytes()[16:20]))}"'
    content = re.sub(r'src="(?:\.\./)*(figures/[^"]+\.png)"', wide, content)
    maths = lambda m: convert(re.sub(r'^\\[\[(]|\\[\])]$', '', html.unescape(m[2]).strip()), display='block' if m[1] == 'div' else 'inline')
    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', maths, content, flags=re.S)

class Page(HTMLParser):
    "What a page of HTML offers and asks for"
    def __init__(self, text):
        super().__init__()
        self.ids,self.links,self.loads = set(),[],[]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id','name') if a.get(k)}
        if a.get('src') or tag == 'link': self.loads.append(a.get('src') or a.get('href') or '')
        elif a.get('href'): self.links.append(a['href'])

def dead_links(site):
    "Links within a built site that lead nowhere, and what its pages load from other hosts; sorted lines of text"
    site = Path(site)
    pages = {p:Page(p.read_text()) for p in sorted(site.rglob('*.html'))}
    dead = set()
    for path,page in pages.items():
        for url in page.links + page.loads:
            part = urlsplit(url)
            if part.scheme or part.netloc:
                if url in page.loads and part.scheme != 'data': dead.add(f'{path.relative_to(site)} loads {url} from elsewhere')
                continue
            target = Path(os.path.normpath((site/part.path.lstrip('/') if part.path.startswith('/') else path.parent/unquote(part.path)) if part.path else path))
            if target.is_dir(): target = target/'index.html'
            if not target.exists(): dead.add(f'{path.relative_to(site)} -> {url}: no such file')
            elif part.fragment and target in pages and unquote(part.fragment) not in pages[target].ids: dead.add(f'{path.relative_to(site)} -> {url}: no such place on the page')
    return sorted(dead)

def on_post_build(config):
    for line in dead_links(config.site_dir): log.warning(line)
