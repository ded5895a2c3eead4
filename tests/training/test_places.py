"""Where a training computes, and in what. A device without numbers stands for GPUs: its tensors, too, refuse
to meet those of the CPU.
"""

import json

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cogvideox.core.errors import InputError
from cogvideox.generation.generate import Place
from cogvideox.training import run
from cogvideox.training.recipe import load_recipe
from cogvideox.training.run import run_recipe
from tests.tiny import tiny_model
from tests.training import test_diffusion, test_judge, test_vae
from tests.training.test_recipes import VAE, write

ELSEWHERE = Place(torch.device("meta"), torch.bfloat16)


class Read(TorchFunctionMode):
    """Every number that is read from there is 1, and every choice takes all."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if (
            function in (Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.__int__, Tensor.__float__)
            and args[0].is_meta
        ):
            return function(torch.ones_like(args[0], device="cpu"))
        if function is Tensor.__getitem__ and getattr(args[1], "dtype", None) is torch.bool:
            assert args[0].device == args[1].device
            return args[0].flatten(0, args[1].ndim - 1)
        return function(*args, **(kwargs or {}))


def trained(task, micro):
    """Loss and gradients of all phases."""
    for phase in task.phases:
        for other in task.phases:
            other.module.requires_grad_(other.name == phase.name)
        with Read():
            task.loss(phase.name, micro, 5).total.backward()
        assert all(p.grad.is_meta for p in phase.module.parameters())


def test_the_tasks_follow_their_models():
    gan, judge = test_vae.task(begins=0, place=ELSEWHERE), test_judge.learner(ELSEWHERE)
    model = tiny_model("5b-i2v")
    model.transformer.to(ELSEWHERE.device, ELSEWHERE.dtype)
    trained(gan, gan.batches()[5][0])
    trained(judge, judge.batches()[8][0])
    stored = torch.zeros(model.text.length, model.spec.transformer.text_dim, device=ELSEWHERE.device)
    dropped, kept = test_diffusion.item(0, drop_text=True), test_diffusion.item(1, text_LD=stored)
    trained(test_diffusion.make_task(model), test_diffusion.row(dropped, kept, test_diffusion.item(2)))


def test_a_run_goes_on_in_another_precision(tmp_path):
    path = write(tmp_path / "r.yaml", VAE)
    for steps, dtype in ((2, "bf16"), (3, "fp32")):
        recipe = load_recipe(path, [f"stages.1.steps={steps}"])
        run_recipe(recipe, tmp_path / "run", workers=0, place=Place.pick("cpu", dtype))
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert [start["precision"] for start in starts] == ["bfloat16", "float32"]


def test_gradients_would_vanish_in_fp16(tmp_path):
    recipe = load_recipe(write(tmp_path / "r.yaml", VAE))
    with pytest.raises(InputError, match="bf16 or fp32"):
        run_recipe(recipe, tmp_path / "run", place=Place.pick("cpu", "fp16"))
    assert not (tmp_path / "run").exists()


def test_several_processes_are_not_sent_to_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "processes", lambda: 2)
    recipe = load_recipe(write(tmp_path / "r.yaml", VAE))
    place = Place(torch.device("cuda:1"), torch.bfloat16)
    with pytest.raises(InputError, match="gives each process a GPU: cuda, not cuda:1"):
        run_recipe(recipe, tmp_path / "run", place=place)
    assert not (tmp_path / "run").exists()
