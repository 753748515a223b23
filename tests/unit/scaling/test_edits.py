import torch

from mp_plugin.scaling.edits import CheckedGradients


def checked() -> tuple[CheckedGradients, torch.optim.Optimizer, torch.Tensor]:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    known = CheckedGradients()
    known.note(optimizer)
    return known, optimizer, parameter.grad


def test_an_edit_is_seen_and_a_look_is_none() -> None:
    known, optimizer, grad = checked()
    grad.norm().item()
    assert not known.are_edited(optimizer)
    grad.mul_(2.0)
    assert known.are_edited(optimizer)


def test_another_gradient_in_its_place_is_an_edit() -> None:
    known, optimizer, grad = checked()
    optimizer.param_groups[0]["params"][0].grad = grad.clone()
    assert known.are_edited(optimizer)


def test_a_harmless_edit_asks_for_no_second_look() -> None:
    """Clipping would otherwise cost a read of all gradients and a sync."""
    known, optimizer, grad = checked()
    with known.harmless_edit(optimizer):
        grad.clamp_(max=0.5)
    assert not known.are_edited(optimizer)


def test_a_harmless_edit_does_not_hide_the_one_before_it() -> None:
    known, optimizer, grad = checked()
    grad.fill_(float("inf"))
    with known.harmless_edit(optimizer):
        grad.clamp_(max=0.5)
    assert known.are_edited(optimizer)


def test_what_is_known_already_is_not_noted_again() -> None:
    known, optimizer, grad = checked()
    grad.mul_(2.0)
    known.note_unless_known(optimizer)
    assert known.are_edited(optimizer)
    known.forget(optimizer)
    assert not known.are_edited(optimizer)
    known.note_unless_known(optimizer)
    grad.mul_(2.0)
    assert known.are_edited(optimizer)


def test_nothing_is_edited_where_nothing_was_checked() -> None:
    _, optimizer, grad = checked()
    known = CheckedGradients()
    with known.harmless_edit(optimizer):
        grad.mul_(2.0)
    assert not known.are_edited(optimizer)
