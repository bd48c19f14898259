"""A GPT-2 of Hugging Face, small, is trained on a text, and then adapted by LoRA to the same text as telegrams.

    python examples/language/data.py
    lockstep train --job examples/pytorch/gpt2.toml --run-dir runs/gpt2
    python examples/pytorch/lora.py
    lockstep train --job examples/pytorch/lora.toml

All weights of the GPT-2 are frozen in the second run, which takes them from the first one's file. What is trained are
two narrow matrices next to each weight matrix (Hu et al., "LoRA: low-rank adaptation of large language models", 2021).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

#: Kinds of characters, and characters that are seen at once.
KINDS, CONTEXT = 64, 64

#: The columns of the narrow matrices, and the factor of what they add.
RANK, SCALE = 8, 2.0


class LanguageModel(nn.Module):
    """The logits of a GPT-2: tokens (n, 64) to (n, 64, 64)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"vocab_size": KINDS, "n_positions": CONTEXT, "n_embd": 64, "n_layer": 2, "n_head": 4}
        self.gpt = GPT2LMHeadModel(GPT2Config(**sizes, use_cache=False, attn_implementation="eager"))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.gpt(tokens).logits


class LowRank(nn.Module):
    """A layer of GPT-2, frozen, and what is added to it: x W + b + scale · x A B."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Under the names that they have in the file of the base.
        self.weight, self.bias = layer.weight.requires_grad_(False), layer.bias.requires_grad_(False)
        inputs, outputs = self.weight.shape
        self.lora_a = nn.Parameter(torch.randn(inputs, RANK) / inputs**0.5)
        self.lora_b = nn.Parameter(torch.zeros(RANK, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs, of the same shape but for the last axis."""
        return x @ self.weight + self.bias + SCALE * (x @ self.lora_a @ self.lora_b)


def gpt2() -> nn.Module:
    """Return the base, all of which is trained."""
    return LanguageModel()


def adapted() -> nn.Module:
    """Return the base, all of which is frozen, with the matrices of LoRA next to its own."""
    model = LanguageModel().requires_grad_(False)
    for block in model.gpt.transformer.h:
        for part, name in ((block.attn, "c_attn"), (block.attn, "c_proj"), (block.mlp, "c_fc"), (block.mlp, "c_proj")):
            setattr(part, name, LowRank(getattr(part, name)))
    return model


def main(source: Path, to: Path) -> None:
    """Write the same sequences in capitals."""
    with np.load(source) as arrays:
        alphabet = [chr(code) for code in arrays["alphabet"]]
        # One that is not in the alphabet stays what it is.
        capitals = [each.upper() if each.upper() in alphabet else each for each in alphabet]
        capital = np.array([alphabet.index(each) for each in capitals], np.int16)
        sequences = {name: capital[arrays[name]] for name in ("x_train", "y_train", "x_test", "y_test")}
        np.savez_compressed(to, **sequences, alphabet=arrays["alphabet"])
    print(f"wrote {to}: {len(sequences['x_train']):,} and {len(sequences['x_test']):,} samples")


if __name__ == "__main__":
    main(Path("runs/characters.npz"), Path(sys.argv[1] if len(sys.argv) > 1 else "runs/telegrams.npz"))
