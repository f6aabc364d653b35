"The example in CONTRIBUTING.md is run as a reader would run it"
import re
import sys

from conftest import ROOT, run


def test_objective_example_runs(tmp_path):
    blocks = re.findall(r'^```python\n(.*?)^```$', (ROOT/'CONTRIBUTING.md').read_text(), re.M | re.S)
    assert len(blocks) == 1, 'one complete example, and no fragments that cannot run'
    assert re.search(r'^assert ', blocks[0], re.M), 'the example checks its own result'
    (tmp_path/'example.py').write_text(blocks[0])
    first = run(sys.executable, 'example.py', cwd=tmp_path, GDPT_ROOT=str(tmp_path))
    done = (tmp_path/'energy'/'DONE').stat().st_mtime_ns
    again = run(sys.executable, 'example.py', cwd=tmp_path, GDPT_ROOT=str(tmp_path))
    energy = lambda text: re.search(r'energy \S+ -> \S+', text)[0]
    assert energy(first) == energy(again)
    assert (tmp_path/'energy'/'DONE').stat().st_mtime_ns == done, 'a finished run was trained again'
