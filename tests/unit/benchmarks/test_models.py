"""The models that step times are measured on have the published shapes, and every size of them trains."""

import pytest
import torch

from benchmarks.helpers.models import GPT2_XL, MODELS, SIZES, loss, parameter_shapes

# As published: GPT-2 with 124M and 1.56B, and what torchvision says of resnet50 and vit_b_16.
PUBLISHED = {"GPT": (124_439_808, 148), "ResNet-50": (25_557_032, 161), "ViT-B/16": (86_567_656, 152)}


@pytest.mark.parametrize("name", MODELS)
def test_a_full_model_has_the_published_number_of_parameters(name):
    shapes = parameter_shapes(MODELS[name]["full"])
    assert (sum(shape.numel() for shape in shapes), len(shapes)) == PUBLISHED[name]


def test_the_large_gpt_has_the_published_number_of_parameters():
    assert sum(shape.numel() for shape in parameter_shapes(GPT2_XL)) == 1_557_611_200


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("name", MODELS)
def test_a_small_model_learns_its_one_batch(name, size):
    model = MODELS[name][size]
    network, batch = model.build(), model.batch()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(loss(network, batch))
        losses[-1].backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert losses[-1] < losses[0]
    assert losses[0].item() == pytest.approx(torch.tensor(float(_classes(model))).log().item(), rel=0.2)


def _classes(model) -> int:
    return model.shapes["vocabulary" if model.sequence else "classes"]


def test_weights_and_data_are_the_same_every_time():
    model = MODELS["GPT"]["tiny"]
    torch.testing.assert_close(dict(model.build().state_dict()), dict(model.build().state_dict()), rtol=0, atol=0)
    assert all(one.equal(other) for one, other in zip(model.batch(), model.batch(), strict=True))


def test_convolutions_are_in_the_channels_last_format():
    model = MODELS["ResNet-50"]["tiny"]
    assert model.build().stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model.batch()[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "items"), [("GPT", (8192, "tokens")), ("ViT-B/16", (64, "images"))])
def test_throughput_counts_tokens_or_images(name, items):
    assert MODELS[name]["full"].items == items
