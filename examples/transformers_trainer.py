"""Watch the kernel of a transformer that transformers' Trainer trains, from random weights.

pip install 'conescope[transformers]'
python examples/transformers_trainer.py     # a few seconds; writes runs/transformers
"""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from conescope.measuring.integrations.transformers import WatchCallback

torch.manual_seed(0)
VOCABULARY, LENGTH = 20, 12
tokens = torch.randint(2, VOCABULARY, (512, LENGTH))
labels = (tokens < VOCABULARY // 2).sum(dim=1).gt(LENGTH // 2).long()  # are most tokens low ones?
data = [
    {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label}
    for row, label in zip(tokens, labels, strict=True)
]

config = BertConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=LENGTH,
)
model = BertForSequenceClassification(config)

probe = {"input_ids": tokens[:16], "attention_mask": torch.ones_like(tokens[:16])}
callback = WatchCallback(
    probe, when="0, every 10, end", out="runs/transformers", params="bert.encoder"
)
arguments = TrainingArguments(
    output_dir="runs/transformers-trainer",
    max_steps=60,
    per_device_train_batch_size=32,
    learning_rate=1e-3,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    use_cpu=True,
)
Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()

series = callback.watch.series
for step, distance in zip(series.steps, series.distances_from(0), strict=True):
    print(f"S({step:3d}, 0) = {distance:.4f}")
