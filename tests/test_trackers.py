"A training shows its log in TensorBoard and W&B: the same numbers at the same steps, and no bit of the weights changes"
import csv
import importlib
import json
import re
import struct

import numpy as np
import pytest
from gdpt import trackers, training
from gdpt.__main__ import main
from gdpt.checkpoints import file_checksum, load_tensors
from gdpt.tiers import config_id, read_config
from processes import team

TRAIN = 'pretrain --tier smoke --images 800 --batch-size 16'       # 50 steps of 16 images; five rows of the log


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    monkeypatch.setenv('GDPT_LOG_WITH', '')                         # and what --log-with sets is undone
    monkeypatch.setenv('GDPT_PROGRESS', 'plain')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setattr(training, 'LOG_STEPS', 10)


def train(folder, *flags): return main([*TRAIN.split(), '--out', str(folder), *flags])


def cut(folder, *flags):
    "Three rows are written; the saved state knows two of them"
    advance = training.Learner.advance

    def interrupted(self, batch):
        if self.nimg == 320: training.SAVE_SECONDS = 1e9
        if self.nimg == 496: raise KeyboardInterrupt
        return advance(self, batch)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(training, 'SAVE_SECONDS', 0.)
        m.setattr(training.Learner, 'advance', interrupted)
        assert train(folder, *flags) == 130
    assert [int(r['nimg']) for r in rows(folder)] == [160, 320, 480]
    assert load_tensors(folder/'state.safetensors')[1]['step'] == 20


def rows(folder):
    with (folder/'log.csv').open() as f: return [*csv.DictReader(f)]


def weights(folder): return file_checksum(folder/'snapshots'/'00000800.safetensors')


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return EventAccumulator(str(folder/'tensorboard')).Reload()


def same_as_log(folder):
    "TensorBoard's numbers are those of the log"
    found, log = events(folder), rows(folder)
    assert {*found.Tags()['scalars']} == {*log[0]} - {'nimg'} | {'images_per_second'}
    for tag in found.Tags()['scalars']:
        told = [(e.step, e.value) for e in found.Scalars(tag)]
        assert [step for step, _ in told] == [int(r['nimg']) for r in log], tag
        if tag in log[0]: assert [v for _, v in told] == [float(np.float32(r[tag])) for r in log], tag
    return log


@pytest.fixture(scope='module')
def untracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp('untracked')/'run'
    with pytest.MonkeyPatch.context() as m:
        m.setattr(training, 'LOG_STEPS', 10)
        assert train(folder) == 0
    return folder


def test_tensorboard(tmp_path, untracked):
    assert train(tmp_path/'run', '--log-with', 'tensorboard') == 0
    assert len(same_as_log(tmp_path/'run')) == 5
    assert weights(tmp_path/'run') == weights(untracked)
    assert (tmp_path/'run'/'config.json').read_text() == (untracked/'config.json').read_text()
    assert not (untracked/'tensorboard').exists()

    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    content = events(tmp_path/'run').SummaryMetadata('_hparams_/session_start_info').plugin_data.content
    said = HParamsPluginData.FromString(content).session_start_info.hparams
    assert (said['batch_size'].number_value, said['data'].string_value) == (16, 'digits')


def test_goes_on(tmp_path, untracked):
    "Cut off after a row that the saved state does not know: no step is there twice"
    cut(tmp_path/'run', '--log-with', 'tensorboard')
    assert train(tmp_path/'run', '--log-with', 'tensorboard') == 0
    assert len([*(tmp_path/'run'/'tensorboard').iterdir()]) == 2
    assert len(same_as_log(tmp_path/'run')) == 5
    assert weights(tmp_path/'run') == weights(untracked)


def test_full_disk(tmp_path, untracked, monkeypatch, capfd):
    "TensorBoard's file cannot be written any more: one line, and the training goes on"
    from tensorboard.summary.writer.record_writer import RecordWriter
    write, written = RecordWriter.write, []

    def limited(self, data):
        written.append(data)
        if len(written) > 20: raise OSError(28, 'No space left on device')
        write(self, data)

    monkeypatch.setattr(RecordWriter, 'write', limited)
    monkeypatch.setattr('threading.excepthook', lambda args: None)       # the thread that writes has a traceback of its own
    assert train(tmp_path/'run', '--log-with', 'tensorboard') == 0
    said = [line for line in capfd.readouterr().err.splitlines() if 'failed' in line]
    assert len(said) == 1 and 'tensorboard failed (OSError' in said[0] and 'goes on without it' in said[0]
    assert len(rows(tmp_path/'run')) == 5 and weights(tmp_path/'run') == weights(untracked)


@pytest.mark.slow
def test_wandb(tmp_path, untracked):
    "Offline, two parts leave two folders of one run, and the second holds everything"
    pytest.importorskip('wandb', reason="pip install 'gdpt[trackers]'; its lock would bring beta versions to everybody")
    cut(tmp_path/'run', '--log-with', 'wandb')
    assert train(tmp_path/'run', '--log-with', 'wandb', 'tensorboard') == 0
    assert len(same_as_log(tmp_path/'run')) == 5                         # TensorBoard was not asked before
    assert weights(tmp_path/'run') == weights(untracked)
    one, two = sorted((tmp_path/'run'/'wandb').glob('offline-run-*'))
    name = f'run-{config_id(read_config(tmp_path/"run"))}'
    assert one.name.endswith(name) and two.name.endswith(name)
    importlib.import_module('wandb').teardown()
    assert [n for n, _ in history(one)] == [160, 320, 480]
    log = rows(tmp_path/'run')
    assert [n for n, _ in history(two)] == [int(r['nimg']) for r in log]
    for (_, told), row in zip(history(two), log):
        assert {k: told[k] for k in row if k != 'nimg'} == {k: float(v) for k, v in row.items() if k != 'nimg'}


@pytest.mark.slow
def test_team(tmp_path):
    "Of two processes, the leading one tells the tracker"
    code, err = team(f'{TRAIN} --shard-size 8 --out {tmp_path}/run --log-with tensorboard', log_steps=10)
    assert code == 0, err
    assert len([*(tmp_path/'run'/'tensorboard').iterdir()]) == 1
    assert len(same_as_log(tmp_path/'run')) == 5


def history(folder):
    "(step, values) of an offline run, from W&B's own file: after 7 bytes come records, each a checksum, its length and its kind, then a protocol buffer"
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, found = next(folder.glob('*.wandb')).read_bytes(), 7, []
    assert len(data) < 2**15, 'longer ones are cut into blocks'
    while at < len(data):
        _, size, _ = struct.unpack_from('<IHB', data, at)
        record, at = Record.FromString(data[at+7:at+7+size]), at+7+size
        if record.WhichOneof('record_type') != 'history': continue
        values = {i.key or '.'.join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        found.append((record.history.step.num, values))
    return found


@pytest.mark.parametrize('name, said', [('mlflow', 'mlflow: expected tensorboard or wandb'), ('wandb', r"wandb: not installed here: pip install 'gdpt\[trackers\]'")])
def test_refused(tmp_path, capsys, monkeypatch, name, said):
    monkeypatch.setattr(trackers, 'installed', lambda name: name == 'tensorboard')
    assert train(tmp_path/'run', '--log-with', 'tensorboard', name) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and re.search(said, err), err
    assert [*tmp_path.iterdir()] == []
