"""One of two ranks: one optimizer step on its half of the eight samples. Run by test_training.py."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from excitor_mm.config import RunConfig, from_dict
from excitor_mm.train import build_for_training, make_optimizer, set_learning_rate, train_step
from tests.invariants.test_training import batches

folder = Path(sys.argv[1])
config = from_dict(RunConfig, json.loads((folder / "config.json").read_text()))
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
torch.manual_seed(0)
model = build_for_training(config)
wrapped = accelerator.prepare(model)
optimizer = make_optimizer(model, config)
set_learning_rate(optimizer, 0, config)
half = batches(config, model, 4)[accelerator.process_index]
loss, norm, count = train_step(wrapped, optimizer, [half], accelerator, config)
if accelerator.is_main_process:
    model.save_pretrained(folder / "adapter")
    (folder / "step.json").write_text(json.dumps([loss, norm, count]))
accelerator.end_training()
