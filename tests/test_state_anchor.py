"""StateAnchor: its closed formula, parts and processes, and what it leaves free."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from emoreg.losses.reroute import Complement
from emoreg.losses.state_anchor import StateAnchor
from emoreg.losses.term import DecisionReadings, Probe, alone

LAYERS, WIDTH = (3, 5), 8
SIZE = torch.tensor([2.0, 5.0], dtype=torch.float64)


def probe() -> Probe:
    directions = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    return Probe(
        directions=directions / directions.norm(dim=-1, keepdim=True),
        zero=torch.zeros(2, 3),
        sigma=torch.ones(2, 3),
        layers=LAYERS,
        emotions=("a", "b", "c"),
        reader="lda",
    )


def outside(stream: Tensor) -> Tensor:
    """What is outside the span, by a QR decomposition."""
    rows = []
    for row, directions in enumerate(probe().directions.double()):
        q = torch.linalg.qr(directions.T).Q
        rows.append(stream[:, row] - stream[:, row] @ q @ q.T)
    return torch.stack(rows, 1)


def term(weight: float = 1.0) -> StateAnchor:
    return StateAnchor(Complement.outside([probe()]), SIZE, weight=weight)


def draw(count: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(count)
    shape = (count, len(LAYERS), WIDTH)
    return torch.randn(shape).double(), torch.randn(shape).double()


def readings(stream: Tensor, held: Tensor, failure: Tensor) -> DecisionReadings:
    return DecisionReadings(
        values=outside(stream), reference=outside(held), failure=failure
    )


def test_it_is_the_mean_squared_distance_outside_the_span() -> None:
    stream, held = draw(5)
    failure = torch.tensor([1.0, 0.0, 1.0, 0.3, 0.0], dtype=torch.float64)
    x = stream.clone().requires_grad_()
    value = term()(readings(x, held, failure))
    (found,) = torch.autograd.grad(value, x)
    y = stream.clone().requires_grad_()
    moved = outside(y - held).square().sum(-1) / SIZE
    wanted = moved.mean()
    (pull,) = torch.autograd.grad(wanted, y)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(found, pull)
    for row, directions in enumerate(probe().directions.double()):
        assert float((found[:, row] @ directions.T).abs().max()) < 1e-6
    assert float(found.abs().max()) > 1e-3  # control


def test_what_the_directions_read_is_free_and_what_both_sides_share_is_not() -> None:
    _, held = draw(4)
    failure = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    along = torch.einsum("led,le->ld", probe().directions, torch.ones(2, 3)).double()
    assert float(term()(readings(held + 3 * along, held, failure))) < 1e-9
    shared = torch.ones(2, WIDTH, dtype=torch.float64)  # control: RerouteAnchor's gap
    assert float(term()(readings(held + shared, held, failure))) > 0.1


def test_unknown_segments_count_for_nothing() -> None:
    stream, held = draw(4)
    failure = torch.tensor([1.0, torch.nan, 0.0, 1.0], dtype=torch.float64)
    known = torch.tensor([0, 2, 3])
    value = term()(readings(stream, held, failure))
    fewer = term()(readings(stream[known], held[known], failure[known]))
    torch.testing.assert_close(value, fewer)


ROWS = (slice(0, 2), slice(2, 6))


def six() -> tuple[Tensor, Tensor, Tensor]:
    stream, held = draw(6)
    return stream, held, torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]).double()


def part(
    rows: slice, reduce: Callable[[Tensor], Tensor] = alone, **more: Any
) -> Tensor:
    stream, held, failure = six()
    made = readings(stream[rows], held[rows], failure[rows])
    return term()(replace(made, **more), reduce)


def test_the_parts_of_a_step_add_up_to_it() -> None:
    told: dict[str, Any] = {
        "failing_total": torch.tensor(4.0).double(),
        "succeeding_total": torch.tensor(2.0).double(),
    }
    whole = term()(readings(*six()))
    torch.testing.assert_close(sum(part(rows, **told) for rows in ROWS), whole)
    untold = sum(part(rows) for rows in ROWS)  # control
    assert not torch.allclose(torch.as_tensor(untold), whole)


def test_the_mean_over_two_processes_is_that_of_one() -> None:
    whole, heard = term()(readings(*six())), []

    def hear(x: Tensor) -> Tensor:
        heard[-1].append(x)
        return x

    for rows in ROWS:
        heard.append([])
        part(rows, hear)
    found = []
    for rows, others in zip(ROWS, reversed(heard), strict=True):
        from_other = iter(others)
        found.append(part(rows, lambda x, other=from_other: x + next(other)))
    torch.testing.assert_close((found[0] + found[1]) / 2, whole)
    apart = [part(rows) for rows in ROWS]  # control
    assert not torch.allclose((apart[0] + apart[1]) / 2, whole)


def test_settings_and_rows_it_cannot_use_are_refused() -> None:
    stream, _ = draw(2)
    failure = torch.tensor([1.0, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="whose cached readings must be there"):
        term()(DecisionReadings(values=outside(stream), failure=failure))
    with pytest.raises(ValueError, match="`size` must be above 0"):
        StateAnchor(Complement.outside([probe()]), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="`weight` must be a finite number >= 0"):
        term(weight=-1.0)
