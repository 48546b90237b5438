"""Checkpoints that the model's own loading understands, whatever their names say."""

import copy
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations

import conescope as cs
from conescope.errors import CheckpointError
from conescope.measuring.checkpoints import find_checkpoints, load_weights, read_weights
from conescope.measuring.checkpoints.loading import fingerprint, fitted, own_state
from conescope.measuring.checkpoints.translation import renamed

PROBE = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class Counting(nn.Linear):
    """A layer whose state dict holds plain values beside its tensors."""

    def __init__(self, state=None):
        super().__init__(4, 3)
        self.state = {"calls": 3, "note": ("a", None)} if state is None else state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def seeded(make, seed):
    torch.manual_seed(seed)
    return make()


def saved(tmp_path, make, seeds=(0, 1)):
    """Checkpoints of models that are made from seeds, and the models."""
    models = [seeded(make, seed) for seed in seeds]
    for seed, model in zip(seeds, models, strict=True):
        torch.save(model.state_dict(), tmp_path / f"step{seed}.pt")
    return models


def values_of(model):
    return [copy.deepcopy(value) for value in model.state_dict().values()]


@pytest.mark.parametrize(
    "state",
    [{"calls": 5}, torch.arange(3), b"bytes", None, [1, {"a": (2.5, torch.ones(2))}], "text", 1],
)
def test_extra_state_of_any_plain_kind_is_measured_with_its_model(tmp_path, state):
    models = saved(tmp_path, lambda: Counting(state))
    run = cs.measure_checkpoints(lambda: Counting("own"), tmp_path, PROBE, out=tmp_path / "run")
    for kernel, model in zip(run.series.kernels, models, strict=True):
        torch.testing.assert_close(kernel.values, cs.entk(model, PROBE).values)
    again = cs.measure_checkpoints(lambda: Counting("own"), tmp_path, PROBE, out=tmp_path / "run")
    assert again.series.steps == (0, 1)
    target = Counting("own")
    load_weights(target, read_weights([tmp_path / "step1.pt"]), Path("a"))
    assert fingerprint(target) == fingerprint(models[1])


def test_a_file_without_extra_state_leaves_the_module_its_own(tmp_path):
    saved(tmp_path, lambda: nn.Linear(4, 3), seeds=(0, 2))
    saved(tmp_path, lambda: Counting("theirs"), seeds=(1,))
    seen = []

    class Watched(Counting):
        def forward(self, x):
            seen.append(self.state)
            return super().forward(x)

    cs.measure_checkpoints(lambda: Watched("own"), tmp_path, PROBE, out=tmp_path / "run")
    assert [*dict.fromkeys(seen)] == ["own", "theirs"]
    assert seen[-1] == "own"  # not that of the checkpoint before


def test_extra_state_without_a_place_is_refused():
    with pytest.raises(CheckpointError, match=r"unexpected in the file \(1\): _extra_state"):
        load_weights(nn.Linear(4, 3), Counting().state_dict(), Path("a"))


@pytest.mark.parametrize(
    "prefix",
    ["module.", "module._orig_mod.", "_orig_mod.module.model.", "net.", "_fsdp_wrapped_module."],
)
def test_extra_state_inside_wrappers_finds_its_place(prefix):
    source = seeded(lambda: nn.Sequential(Counting("theirs"), nn.Linear(3, 2)), 1)
    target = nn.Sequential(Counting("own"), nn.Linear(3, 2))
    state = {prefix + name: value for name, value in source.state_dict().items()}
    load_weights(target, state, Path("a"))
    assert target[0].state == "theirs"
    assert torch.equal(target[1].weight, source[1].weight)
    wrapped = nn.ModuleDict({"module": nn.Sequential(Counting("own"), nn.Linear(3, 2))})
    load_weights(wrapped, source.state_dict(), Path("a"))
    assert wrapped["module"][0].state == "theirs"


def test_a_watch_takes_a_model_with_extra_state(tmp_path):
    model = Counting()
    with cs.Watch(model, PROBE, when="0", out=tmp_path / "run") as watch:
        watch.step(0)
    (kernel,) = cs.load_run(tmp_path / "run").series.kernels
    torch.testing.assert_close(kernel.values, cs.entk(model, PROBE).values)


class Opaque:
    __slots__ = ("hidden",)


class Open:
    def __init__(self, value):
        self.value = value


@pytest.mark.parametrize(
    ("one", "other"),
    [({"a": 1}, {"a": 2}), ([1, 2], [2, 1]), ("1", 1), (b"a", "a"), (None, False), ({1}, {2}),
     (torch.ones(2), torch.zeros(2)), (torch.ones(1), torch.ones(1).double()), ((1,), [1]),
     (["a,b"], ["a", "b"]), (Open(1), Open(2)), ({"a": torch.ones(1)}, {"a": torch.zeros(1)})],
)  # fmt: skip
def test_a_fingerprint_covers_extra_state(one, other):
    a, same, b = seeded(Counting, 0), seeded(Counting, 0), seeded(Counting, 0)
    a.state, same.state, b.state = one, copy.deepcopy(one), other
    assert fingerprint(a) == fingerprint(same)
    assert fingerprint(a) != fingerprint(b)


def test_a_fingerprint_ends_and_does_not_depend_on_addresses_or_order():
    def of(state):
        model = seeded(Counting, 0)
        model.state = state
        return fingerprint(model)

    endless = []
    endless.append(endless)
    assert of(endless) == of(endless)
    assert of(Opaque()) == of(Opaque())
    node = Open(1)
    for _ in range(60):
        node = Open([node, node])
    assert of(node) == of(node)
    assert of({"a": 1, "b": 2}) == of({"b": 2, "a": 1})


class Old(nn.Module):
    """A module that translates an old layout: another name, and transposed."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return x @ self.weight.T

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version", 1) < 2:
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel").T
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


class Copying(Old):
    """One that writes its own weights when it loads."""

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        with torch.no_grad():
            self.weight.copy_(state_dict[prefix + "kernel"].T)


class Hooked(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self._register_load_state_dict_pre_hook(self._translate)

    def _translate(self, state_dict, prefix, *_):
        if (old := prefix + "w") in state_dict:
            state_dict[prefix + "weight"] = state_dict.pop(old)


class Reading(Hooked):
    """A module that looks at its own values when it loads."""

    def _translate(self, state_dict, prefix, *rest):
        assert self.weight.sum().item() < 1e9
        super()._translate(state_dict, prefix, *rest)


class Locked(Hooked):
    """A module that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Overriding(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

    def load_state_dict(self, state_dict, strict=True):
        state_dict = {name.removeprefix("old_"): value for name, value in state_dict.items()}
        return super().load_state_dict(state_dict, strict)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Old, {"weight": ("kernel", True)}),
        (Copying, {"weight": ("kernel", True)}),
        (Hooked, {"weight": ("w", False)}),
        (Reading, {"weight": ("w", False)}),
        (Locked, {"weight": ("w", False)}),
        (lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
         {"parametrizations.weight.original0": ("weight_g", False),
          "parametrizations.weight.original1": ("weight_v", False)}),
    ],
)  # fmt: skip
def test_names_that_the_modules_translate_are_loaded(tmp_path, make, names, prefix):
    models = [seeded(lambda: nn.Sequential(make(), nn.Linear(3, 2)), seed) for seed in (0, 1)]
    for seed, model in enumerate(models):
        state = {}
        for name, value in model.state_dict().items():
            old, turned = names.get(name.removeprefix("0."), (name.removeprefix("0."), False))
            old = f"{prefix}0.{old}" if name.startswith("0.") else f"{prefix}{name}"
            state[old] = value.T.contiguous() if turned else value.clone()
        save_file(state, tmp_path / f"step{seed}.safetensors")

    def build():
        return nn.Sequential(make(), nn.Linear(3, 2))

    run = cs.measure_checkpoints(build, tmp_path, PROBE, out=tmp_path / "run")
    for kernel, model in zip(run.series.kernels, models, strict=True):
        assert torch.equal(kernel.values, cs.entk(model, PROBE).values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4)),
        lambda: nn.ModuleDict({"module": nn.Linear(3, 2), "net": nn.Linear(2, 2)}),
        lambda: nn.ModuleDict({"model": nn.ModuleDict({"module": nn.Linear(3, 2)})}),
        lambda: nn.ModuleDict({"_orig_mod": nn.Linear(3, 2)}),
        lambda: nn.Linear(3, 2),
    ],
)
def test_names_that_are_the_models_own_need_no_translation(make):
    state = make().state_dict()
    translated = renamed(state, make().state_dict())
    assert [*translated] == [*state]
    assert all(translated[name] is value for name, value in state.items())
    assert translated.metadata.items() <= state._metadata.items()


def test_a_models_own_load_state_dict_is_asked():
    source, target = seeded(Overriding, 1), Overriding()
    state = {f"old_{name}": value for name, value in source.state_dict().items()}
    load_weights(target, state, Path("a"))
    assert torch.equal(target.weight, source.weight)


def test_the_version_of_a_file_reaches_the_modules(tmp_path):
    source = seeded(lambda: nn.Sequential(Old()), 1)
    torch.save(source.state_dict(), tmp_path / "new.pt")
    torch.save({"module.0.weight": source[0].weight}, tmp_path / "old.pt")
    target = nn.Sequential(Old())
    load_weights(target, read_weights([tmp_path / "new.pt"]), Path("a"))
    assert torch.equal(target[0].weight, source[0].weight)
    wrapped = nn.ModuleDict({"module": source})
    torch.save({"state_dict": wrapped.state_dict()}, tmp_path / "wrapped.pt")
    load_weights(target, read_weights([tmp_path / "wrapped.pt"]), Path("a"))
    with pytest.raises(CheckpointError, match=r"the model's own loading raised KeyError"):
        load_weights(target, read_weights([tmp_path / "old.pt"]), Path("a"))


def test_batchnorm_of_an_old_file_counts_from_zero():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    own = own_state(model)
    model[1].num_batches_tracked += 7  # as the checkpoint before had it
    state = {n: v + 1 for n, v in model.state_dict().items() if "num_batches" not in n}
    load_weights(model, state, Path("a"), own)
    assert model[1].num_batches_tracked == 0
    assert torch.equal(model[1].running_var, torch.full((3,), 2.0))


def test_nothing_is_loaded_if_the_models_own_loading_refuses():
    class Refusing(Counting):
        def set_extra_state(self, state):
            if state != "good":
                raise ValueError(f"no state: {state}")
            self.state = state

    model = nn.Sequential(Refusing("good"), Refusing("good"))
    before = values_of(model)
    state = {name: "bad" if name == "1._extra_state" else value if isinstance(value, str)
             else value + 1 for name, value in model.state_dict().items()}  # fmt: skip
    with pytest.raises(CheckpointError, match=r"refused by the model \(1\).*ValueError: no state"):
        load_weights(model, state, Path("a"))
    for value, old in zip(values_of(model), before, strict=True):
        assert torch.equal(value, old) if isinstance(value, torch.Tensor) else value == old


def test_a_buffer_that_the_model_computes_may_be_in_an_old_file():
    class Positions(nn.Linear):
        def __init__(self, persistent=False):
            super().__init__(4, 3)
            self.register_buffer("places", torch.arange(4) / 3, persistent=persistent)

    state = seeded(lambda: Positions(persistent=True), 1).state_dict()
    model = Positions()
    load_weights(model, state, Path("a"))
    assert torch.equal(model.weight, state["weight"])
    state["places"] = state["places"] + 1
    with pytest.raises(CheckpointError, match=r"unexpected in the file \(1\): places"):
        load_weights(model, state, Path("a"))


def test_looking_at_a_checkpoint_allocates_no_second_model():
    model = nn.Linear(4, 3)
    sizes = []
    original = torch.Tensor.__deepcopy__

    def noted(self, memo):
        sizes.append(self.numel())
        return original(self, memo)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__deepcopy__", noted)
        fitted(model, nn.Linear(4, 3).state_dict(), Path("a"))
    assert not sizes


def adapted_model(name="default"):
    """A model as peft builds it: a frozen base, with an adapter beside each layer."""
    layer = nn.Module()
    layer.base_layer = nn.Linear(4, 3)
    layer.lora_A = nn.ModuleDict({name: nn.Linear(4, 1, bias=False)})
    layer.lora_B = nn.ModuleDict({name: nn.Linear(1, 3, bias=False)})
    head = nn.Module()
    head.original_module = nn.Linear(3, 2)
    head.modules_to_save = nn.ModuleDict({name: nn.Linear(3, 2)})
    model = nn.Module()
    model.base_model = nn.Module()
    model.base_model.model = nn.ModuleDict({"fc": layer, "head": head})
    return model


def adapter_of(model, name="default"):
    return {
        n.replace(f"modules_to_save.{name}.", "").replace(f".{name}.", "."): t.clone()
        for n, t in model.state_dict().items()
        if "lora_" in n or "modules_to_save" in n
    }


@pytest.mark.parametrize("name", ["default", "mine"])
def test_an_adapter_is_loaded_on_its_base(tmp_path, name):
    source, target = seeded(lambda: adapted_model(name), 1), adapted_model(name)
    base = target.base_model.model["fc"].base_layer.weight.clone()
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    save_file(adapter_of(source, name), folder / "adapter_model.safetensors")
    (found,) = find_checkpoints(tmp_path)
    assert (found.step, [file.name for file in found.files]) == (5, ["adapter_model.safetensors"])
    load_weights(target, read_weights(found.files), found.path)
    theirs, ours = source.base_model.model, target.base_model.model
    assert torch.equal(ours["fc"].lora_A[name].weight, theirs["fc"].lora_A[name].weight)
    assert torch.equal(ours["head"].modules_to_save[name].bias,
                       theirs["head"].modules_to_save[name].bias)  # fmt: skip
    assert torch.equal(ours["fc"].base_layer.weight, base)
    load_weights(target, source.state_dict(), Path("whole"))
    assert torch.equal(ours["fc"].base_layer.weight, theirs["fc"].base_layer.weight)


def test_an_adapter_that_does_not_fit_is_refused():
    adapter = adapter_of(adapted_model())
    lacking = {n: t for n, t in adapter.items() if "lora_B" not in n}
    with pytest.raises(CheckpointError, match=r"the file lacks base_model.*lora_B.default"):
        load_weights(adapted_model(), lacking, Path("a"))
    only_lora = {n: t for n, t in adapter.items() if "lora_" in n}
    with pytest.raises(CheckpointError, match=r"the model holds none; build the model with one"):
        load_weights(nn.Linear(4, 3), only_lora, Path("a"))
    several = adapted_model()
    several.base_model.model["fc"].lora_A["other"] = nn.Linear(4, 1, bias=False)
    with pytest.raises(CheckpointError, match=r"the model holds several: .*default.*other"):
        load_weights(several, adapter, Path("a"))
    wrong = adapter | {"base_model.model.fc.lora_A.weight": torch.ones(2, 4)}
    with pytest.raises(CheckpointError, match=r"of another shape or kind"):
        load_weights(adapted_model(), wrong, Path("a"))


def test_own_state_is_what_a_file_may_lack():
    own = own_state(nn.Sequential(Counting("own"), nn.BatchNorm1d(3)))
    assert own == {"0._extra_state": "own", "1.num_batches_tracked": torch.tensor(0)}
