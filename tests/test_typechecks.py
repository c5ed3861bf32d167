"""Checking each kind of call once finds what checking each call finds."""

from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Int
from torch import Tensor

import foredraft as fd
from tests.typechecks import once

check = once(typechecker=beartype)


@check
def doubled(rows: Float[Tensor, "batch vocab"], *, fault: str = "") -> Float[Tensor, "batch vocab"]:
    return rows[:1] if fault == "shape" else rows.double() if fault == "dtype" else rows * 2


@check
def chosen(
    scores: Float[Tensor, "batch vocab"], ids: Int[Tensor, " batch"]
) -> list[Float[Tensor, " vocab"]]:
    return [*scores[ids]]


@check
@dataclass
class Row:
    tokens: list[int]
    name: str | None = None


def refuses(call, *args, **kwargs):
    with pytest.raises(jaxtyping.TypeCheckError):
        call(*args, **kwargs)


def test_a_call_unlike_those_that_passed_is_refused():
    assert doubled(torch.ones(2, 3)).sum() == 12
    refuses(doubled, torch.ones(3))
    refuses(doubled, torch.ones(2, 3, dtype=torch.int64))
    refuses(doubled, [[1.0]])
    assert len(chosen(torch.ones(2, 3), torch.tensor([0, 1]))) == 2
    refuses(chosen, torch.ones(2, 3), torch.tensor([0, 1, 1]))
    assert doubled(torch.ones(2, 3)).sum() == 12


def test_a_result_unlike_those_that_passed_is_refused_though_the_call_is_not():
    rows = torch.ones(2, 3)
    assert doubled(rows, fault="").sum() == 12
    refuses(doubled, rows, fault="shape")
    refuses(doubled, rows, fault="shape")
    assert doubled(rows, fault="dtype").dtype is torch.float64
    assert doubled(rows, fault="").sum() == 12


def test_items_and_fields_are_checked():
    assert Row([1, 2]).tokens == [1, 2]
    refuses(Row, ["1"])
    refuses(Row, [1], name=3)
    assert Row([1, 2], name="a").name == "a"


def test_classes_of_the_same_fields_are_told_apart():
    def made(kind: type) -> type:
        @check
        @dataclass
        class Field:
            value: kind

        return Field

    assert made(int)(3).value == 3
    refuses(made(str), 3)


def test_functions_made_again_are_checked_as_the_first():
    def made(factor: int):
        @check
        def times(value: int) -> int:
            return value * factor

        return times

    assert [made(2)(3), made(3)(3)] == [6, 9]
    refuses(made(4), "3")


def test_the_package_is_checked():
    with pytest.raises(jaxtyping.TypeCheckError):
        fd.Sampler(temperature=1.0).probs([1.0, 2.0])
