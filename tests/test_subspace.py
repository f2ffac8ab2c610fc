"""The subspace gradient against the eigenvectors of the covariance, in float64."""

import pytest
import torch

from sopt.token.subspace import SubspaceGradient, low_variance_directions

WIDTH, TAU = 24, 10
FLOAT32 = 2.0**-24


def walk(steps, vectors=1, seed=0):
    """Tokens that drift mostly in a few directions."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.linspace(0, -3, steps)
    moves = torch.randn(steps, vectors, WIDTH, generator=generator)
    return (moves * scales[:, None, None]).cumsum(0)


def expected_projector(tokens, nu):
    """What is taken out, (width, width): by the covariance's eigenvectors, per the definition."""
    x = tokens.double()
    x = x - x.mean(0)
    deviation = (x.square().sum(0) / len(x)).sqrt()
    x = x / torch.where(deviation > 0, deviation, torch.ones(()))
    values, vectors = torch.linalg.eigh(x.T @ x)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = min(len(x) - 1, x.shape[1])
    total, running = values[:rank].sum(), 0.0
    for i in range(rank):
        running += values[i]
        if running / total > 1 - nu:
            break
    removed = vectors[:, i + 1 : rank]
    return removed @ removed.T


@pytest.mark.parametrize("nu", [1e-4, 1e-2, 0.1, 0.5, 0.99])
def test_the_directions_taken_out_are_the_low_variance_eigenvectors(nu):
    tokens = walk(TAU)[:, 0]
    found = low_variance_directions(tokens, nu).double()
    expected = expected_projector(tokens, nu)
    assert len(found) == round(expected.trace().item())
    # P is rounded to float32 once; the eigenvectors of x^T x lose the square of the condition
    # number, at most 1e-16 / 1e-9 here, where the last kept eigenvalue is 1e-9 of the first.
    assert (found.T @ found - expected).abs().max() <= 2 * len(found) * FLOAT32 + 1e-6


def test_nearly_all_directions_of_the_buffer_go_and_none_outside_of_its_span():
    tokens = walk(TAU)[:, 0]
    removed = low_variance_directions(tokens, 0.99).double()
    assert len(removed) == TAU - 2  # all but the first of rank tau - 1
    x = tokens.double() - tokens.double().mean(0)
    x /= x.square().mean(0).sqrt()
    outside = torch.eye(WIDTH, dtype=torch.float64) - torch.linalg.pinv(x) @ x
    assert (removed @ outside).abs().max() < 1e-6


def test_a_feature_that_did_not_move_is_no_division_by_zero():
    tokens = walk(TAU)[:, 0]
    tokens[:, 3] = 0.1  # its mean is rounded
    found = low_variance_directions(tokens, 0.1)
    assert found.isfinite().all()
    assert (found[:, 3].abs() < 1e-7).all()
    still = torch.full((TAU, WIDTH), 0.1)
    assert low_variance_directions(still, 0.1).shape == (0, WIDTH)


def test_projection_starts_after_tau_steps_and_is_renewed_every_tau():
    nu, vectors = 0.1, 2
    tokens = walk(3 * TAU, vectors)
    gradient = torch.randn(vectors, WIDTH, generator=torch.Generator().manual_seed(1))
    subspace = SubspaceGradient(tokens[0], TAU, nu)
    for step, token in enumerate(tokens, start=1):
        found = subspace.project(gradient)
        if step <= TAU:
            assert torch.equal(found, gradient)
        else:
            last = (step - 1) // TAU * TAU
            for v in range(vectors):
                taken = expected_projector(tokens[last - TAU : last, v], nu)
                expected = gradient[v].double() - taken @ gradient[v].double()
                # Two products of up to tau and width terms in float32.
                rounding = (TAU + WIDTH) * FLOAT32 * gradient[v].norm()
                assert (found[v] - expected).abs().max() <= rounding + 1e-6 * gradient[v].norm()
            kept = sum(
                round(expected_projector(tokens[last - TAU : last, v], nu).trace().item())
                for v in range(vectors)
            )
            assert subspace.num_removed == kept > 0
        subspace.record(token)


@pytest.mark.parametrize("at", [3, TAU, TAU + 4])
def test_a_subspace_that_is_loaded_goes_on_to_the_same_bits(at):
    tokens = walk(3 * TAU)
    one = SubspaceGradient(tokens[0], TAU, 0.1)
    for token in tokens[:at]:
        one.record(token)
    other = SubspaceGradient(tokens[0], TAU, 0.1)
    other.load({name: tensor.clone() for name, tensor in one.state().items()})
    for token in tokens[at:]:
        one.record(token)
        other.record(token)
        gradient = torch.ones_like(token)
        assert torch.equal(one.project(gradient), other.project(gradient))


def test_a_share_below_the_arithmetic_takes_nothing_out():
    for seed in range(6):
        tokens = torch.randn(16, 40, generator=torch.Generator().manual_seed(seed))
        assert len(low_variance_directions(tokens, 1e-16)) == 0
