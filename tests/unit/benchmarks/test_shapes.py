"""The shapes of gradients are those of the published networks, by their published numbers of parameters."""

import pytest

# Parameters, and tensors, as torchvision and transformers count them.
PUBLISHED = {
    "GPT-2 small": (124_439_808, 148),
    "GPT-2 XL": (1_557_611_200, 580),
    "ResNet-50": (25_557_032, 161),
    "ViT-B/16": (86_567_656, 152),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_has_as_many_parameters_as_published(name):
    from helpers.shapes import network, num_values

    shapes = network(name)
    assert (num_values(shapes), len(shapes)) == PUBLISHED[name]


def test_no_network_is_left_out():
    from helpers.shapes import NETWORKS

    assert set(NETWORKS) == set(PUBLISHED)


def test_the_extremes_are_extreme():
    from helpers.shapes import many_tiny, one_huge

    tiny = many_tiny()
    assert len(tiny) == 10_000
    assert min(tiny) == (1,)
    assert max(tiny) == (257,)
    assert one_huge(7) == [(7,)]
