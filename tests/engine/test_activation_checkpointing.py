"""Activation checkpointing computes blocks again instead of keeping what they computed; nothing else changes."""

import copy

import torch
from torch import nn

from lbvq.engine.activation_checkpointing import enable_activation_checkpointing


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x, *, scale):
        self.calls += 1
        return x + scale * torch.nn.functional.dropout(self.inner(x).relu(), 0.5, self.training)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.mlp = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))

    def forward(self, x):
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.mlp(x).square().mean()


def test_activation_checkpointing_changes_neither_names_nor_gradients():
    plain, thrifty = Stack(), Stack()
    names = enable_activation_checkpointing(thrifty)
    assert names == ["blocks.0", "blocks.1", "blocks.2"]
    assert list(plain.state_dict()) == list(thrifty.state_dict())
    thrifty = copy.deepcopy(thrifty)
    x = torch.randn(5, 4)
    for model in (plain, thrifty):
        torch.manual_seed(2)
        model(x).backward()
    for a, b in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert plain.blocks[0].calls == 1 and thrifty.blocks[0].calls == 2
    thrifty.eval()(x)
    assert thrifty.blocks[0].calls == 3


def test_activation_checkpointing_leaves_trained_batch_statistics_alone():
    model = nn.ModuleDict({"stage": nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))] * 2)})
    assert enable_activation_checkpointing(model) == []
