"""Tiny model folders, built once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import tiny_folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`folder_of("5b")`: a folder with a tiny random model like that one. Not to be changed."""
    root = tmp_path_factory.mktemp("models")

    def make(like: str) -> Path:
        return root / like if (root / like).exists() else tiny_folder(root / like, like)

    return make


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Equal bit for bit, names included."""
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) and x[k].dtype == y[k].dtype for k in x)
