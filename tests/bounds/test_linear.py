"""Backward substitution: its values and its closed-form backward pass against those of its formula, in float64."""

import torch

from paperlib.bounds.linear import LinearFunction, LinearRelaxation, backward_substitute


def test_substitution_takes_the_bound_by_the_sign_of_each_coefficient() -> None:
    coefficients, functions = torch.randn(3, 2, 5).double(), torch.randn(4, 2, 5).double()
    leaves = [coefficients.requires_grad_(), *(part.clone().requires_grad_() for part in functions)]
    relaxation = LinearRelaxation(LinearFunction(*leaves[1:3]), LinearFunction(*leaves[3:]))
    along = torch.randn(2, 3, 2, 5).double()
    slope, offset = (
        torch.where(coefficients > 0, lower, upper) for lower, upper in zip(leaves[1:3], leaves[3:], strict=True)
    )
    formula = (coefficients * slope, coefficients * offset)
    substituted = backward_substitute(coefficients, relaxation)
    for one, other in zip(substituted, formula, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    gradients, expected = (
        torch.autograd.grad((along * torch.stack(each)).sum(), leaves) for each in (substituted, formula)
    )
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
