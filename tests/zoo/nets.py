"""Well-known nets with random weights, as a user builds them: given as a model file, never imported by the tests.

A group holds several nets, whose outputs are added: one run of it trains all of them.
"""

from typing import Any

import torch
from torch import nn

CLASSES = 10

TORCHVISION = (
    "mnasnet0_5", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1",
)  # fmt: skip

#: By the class in transformers: its configuration, as small as it can be and still have all its parts.
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": CLASSES}
TRANSFORMERS = {
    "BertForMaskedLM": {**SMALL, "intermediate_size": 32},
    "GPT2LMHeadModel": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": CLASSES},
    "LlamaForCausalLM": {**SMALL, "intermediate_size": 32, "num_key_value_heads": 1},
    "MambaForCausalLM": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "vocab_size": CLASSES},
    "MixtralForCausalLM": {**SMALL, "intermediate_size": 32, "num_key_value_heads": 1, "num_local_experts": 4},
    "RobertaForMaskedLM": {**SMALL, "intermediate_size": 32, "pad_token_id": 1},
    "T5ForConditionalGeneration": {
        "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": CLASSES,
        "decoder_start_token_id": 0,
    },
    "ViTForImageClassification": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64,
        "patch_size": 16, "num_labels": CLASSES,
    },
}  # fmt: skip


class Logits(nn.Module):  # type: ignore[misc]  # as a user writes it
    """A net of transformers, without all that it returns besides."""

    def __init__(self, net: Any, is_given_targets: bool) -> None:
        super().__init__()
        self.net = net
        self.is_given_targets = is_given_targets

    def forward(self, x: Any) -> Any:
        return self.net(x, decoder_input_ids=x).logits if self.is_given_targets else self.net(x).logits


class Group(nn.Module):  # type: ignore[misc]
    """Nets for the same samples."""

    def __init__(self, nets: dict[str, Any]) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(nets)

    def forward(self, x: Any) -> Any:
        return torch.stack([net(x) for net in self.nets.values()]).mean(0)


def from_timm(name: str) -> Any:
    import timm

    return timm.create_model(name, num_classes=CLASSES)


def from_torchvision(name: str) -> Any:
    from torchvision import models

    return models.get_model(name, num_classes=CLASSES)


def from_transformers(name: str) -> Any:
    import transformers

    kind = getattr(transformers, name)
    return Logits(kind(kind.config_class(**TRANSFORMERS[name])), name.startswith("T5"))


def timm_nets() -> Any:
    import timm

    return Group({name: from_timm(name) for name in timm.list_models("test_*")})


def torchvision_nets() -> Any:
    vit = "ViTForImageClassification"
    return Group({**{name: from_torchvision(name) for name in TORCHVISION}, vit: from_transformers(vit)})


def transformers_nets() -> Any:
    return Group({name: from_transformers(name) for name in TRANSFORMERS if not name.startswith("ViT")})
