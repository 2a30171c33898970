"""The monitor in other libraries' trainers: real ones, small models, no network."""

import math
import os
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from warmfree.record import read_records

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def records(folder, kind):
    return [record for record in read_records(folder / "monitor.jsonl") if record["kind"] == kind]


def gpt2_trainer(folder, *, steps, callbacks, seed=0):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(vocab_size=31, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(seed)
    data = [
        {"input_ids": torch.arange(i, i + 8) % 31, "labels": torch.arange(i, i + 8) % 31} for i in range(64)
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        save_steps=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=2,
        warmup_steps=0,
    )
    return transformers.Trainer(
        transformers.GPT2LMHeadModel(config), arguments, train_dataset=data, callbacks=callbacks
    )


@pytest.mark.filterwarnings("ignore")
def test_transformers_trainer(tmp_path):
    pytest.importorskip("transformers")
    from warmfree.adapters.transformers import MonitorCallback

    gpt2_trainer(tmp_path / "bare", steps=6, callbacks=[]).train()
    callback = MonitorCallback(probes="all", budget=math.inf)
    trainer = gpt2_trainer(tmp_path / "run", steps=6, callbacks=[callback])
    trainer.train()
    folder = tmp_path / "run"
    assert not records(folder, "notice")
    steps = records(folder, "step")
    assert [record["step"] for record in steps] == list(range(6))
    # the Trainer divides by all 64 labels, of which 56 count
    assert steps[0]["loss"] == pytest.approx(torch.log(torch.tensor(31.0)).item() * 56 / 64, rel=0.05)
    assert callback.monitor.latest["attention_entropy"].keys() == {
        "transformer.h.0.attn",
        "transformer.h.1.attn",
    }
    assert callback.monitor.latest["critical_batch"][""] > 0
    assert records(folder, "end")[0]["step"] == 6
    bare = gpt2_trainer(tmp_path / "again", steps=6, callbacks=[])
    bare.train()
    for ours, theirs in zip(trainer.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_transformers_trainer_resumes_at_its_step(tmp_path):
    pytest.importorskip("transformers")
    from warmfree.adapters.transformers import MonitorCallback

    gpt2_trainer(tmp_path, steps=4, callbacks=[MonitorCallback()]).train()
    again = gpt2_trainer(tmp_path, steps=6, callbacks=[MonitorCallback()])
    again.train(resume_from_checkpoint=True)
    assert [record["first_step"] for record in records(tmp_path, "start")] == [0, 4]
    assert [record["step"] for record in records(tmp_path, "step")] == list(range(6))


def lightning_module(lightning):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            x, y = batch
            return (self(x) - y).square().mean()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    return Module()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 3])
def test_lightning_trainer(tmp_path, accumulate):
    lightning = pytest.importorskip("pytorch_lightning")
    from warmfree.adapters.lightning import MonitorCallback

    torch.manual_seed(0)
    module = lightning_module(lightning)
    data = DataLoader(TensorDataset(torch.randn(48, 5), torch.randn(48, 1)), batch_size=4)
    callback = MonitorCallback(str(tmp_path), batch_size=4 * accumulate, budget=math.inf)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
    assert not records(tmp_path, "notice")
    steps = records(tmp_path, "step")
    assert [record["step"] for record in steps] == list(range(12 // accumulate))
    assert all(0.1 < record["loss"] < 10 for record in steps)
    assert callback.monitor.latest["rrc"].keys() == {"net.0", "net.2"}
    assert callback.monitor.latest["grad_norm"][""] > 0
    assert records(tmp_path, "end")[0]["step"] == 12 // accumulate


@pytest.mark.filterwarnings("ignore")
def test_lightning_detaches_when_the_fit_fails(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")
    from warmfree.adapters.lightning import MonitorCallback

    module = lightning_module(lightning)
    module.training_step = lambda batch, batch_idx: 1 / 0
    data = DataLoader(TensorDataset(torch.randn(8, 5), torch.randn(8, 1)), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[MonitorCallback(str(tmp_path))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, data)
    assert records(tmp_path, "end")
    assert not module._forward_hooks
