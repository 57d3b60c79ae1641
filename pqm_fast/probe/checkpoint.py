"""Writes the checkpoint of a head: the decoder up to its layer, with the head as its score."""

import torch
from torch import nn

from pqm_fast.common.combination import Combination
from pqm_fast.model.cut import cut_backbone
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.saving import save_checkpoint
from pqm_fast.probe.frozen import FrozenDecoder
from pqm_fast.probe.heads import Head
from pqm_fast.probe.options import ProbeConfig


def write_checkpoint(config: ProbeConfig, decoder: FrozenDecoder, head: Head) -> None:
    """Writes a `*ForTokenClassification` folder into the run folder. Cuts the model of `decoder`, which computes no
    more states afterwards.

    The decoder's weights have the dtype in which the states were computed, which loses nothing; the head is float32.
    """
    model = decoder.model
    cut_backbone(model.classifier, head.spec.layer)
    linear = model.head
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(head.weight)[None])
        linear.bias.fill_(head.bias)
    head_tensors = {id(tensor) for tensor in (linear.weight, linear.bias)}
    state = {
        name: tensor.detach() if id(tensor) in head_tensors else tensor.detach().to(decoder.dtype)
        for name, tensor in model.classifier.state_dict(keep_vars=True).items()
    }
    recipe = _recipe(config, decoder, head)
    save_checkpoint(model.classifier, config.folder, decoder.tokenizer, recipe, decoder.dtype, state)


def _recipe(config: ProbeConfig, decoder: FrozenDecoder, head: Head) -> Recipe:
    spec = head.spec
    combination: Combination = spec.combination
    zeta = Recipe.zeta if spec.zeta is None else spec.zeta
    weight = Recipe.compare_weight if spec.compare_weight is None else spec.compare_weight
    return Recipe(
        decoder.template, combination.loss, zeta, combination.compare, weight, config.temperature, config.noise
    )
