"""Divergences against worked values, independent NumPy formulas, autograd and finite differences."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dskd import divergences
from dskd.method import MethodError

P, Q = [0.70, 0.20, 0.08, 0.02], [0.40, 0.30, 0.20, 0.10]
SETTINGS: list[tuple[str, dict[str, float]]] = [(name, {}) for name in divergences.NAMES] + [
    ("jsd@gkd", {"beta": 0.9}),
    ("jsd@distillm", {"beta": 0.9}),
    ("skl", {"alpha": 0.4}),
    ("srkl", {"alpha": 0.4}),
    ("abkd", {"alpha": 1.3, "beta": 0.5}),
    ("abkd", {"alpha": 0.0}),
    ("abkd", {"beta": 0.0}),
    ("abkd", {"alpha": 0.0, "beta": 0.0}),
]


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def random_logits(seed: int, rows: int = 6, size: int = 40, spread: float = 2.0) -> torch.Tensor:
    draw = np.random.default_rng(seed).normal(scale=spread, size=(rows, size))
    return torch.from_numpy(draw)


# --- independent formulas, one row of probabilities at a time -----------------------------------------


def kl(p: np.ndarray, q: np.ndarray) -> float:
    keep = p > 0
    return float(np.sum(p[keep] * np.log(p[keep] / q[keep])))


def akl(p: np.ndarray, q: np.ndarray, official: bool) -> float:
    if official:
        order = np.argsort(-p, kind="stable")
        inside = np.cumsum(p[order]) <= 0.5
        inside[0] = True
        head = order[inside]
    else:
        order = np.argsort(p, kind="stable")
        head = order[np.cumsum(p[order]) > 0.5]
    gap = np.abs(p - q)
    total = gap.sum()
    if total == 0:
        return 0.0
    share = gap[head].sum() / total
    return share * kl(p, q) + (1 - share) * kl(q, p)


def alpha_beta(p: np.ndarray, q: np.ndarray, a: float, b: float) -> float:
    """The integral over the path that defines it: no special cases, so the limits come out by themselves.

    q_i -> r: d/dr of the summand is r^(b-1) (r^a - p^a) / a = r^(b-1) int_0^log(r/p) p^a e^(a t) dt.
    """
    nodes, weights = np.polynomial.legendre.leggauss(60)
    total = 0.0
    for one, other in zip(p, q, strict=True):
        length = np.log(other / one)  # r = p e^x, x from 0 to length
        x = length * (nodes + 1) / 2
        inner = [one**a * np.sum(weights * np.exp(a * y * (nodes + 1) / 2)) * y / 2 for y in x]
        total += np.sum(weights * (one * np.exp(x)) ** b * np.array(inner)) * length / 2
    return float(total)


def concrete_score(p: np.ndarray, q: np.ndarray, kind: str) -> float:
    d = np.log(q) - np.log(p)
    u = {"ss": q, "us": np.full_like(q, 1 / len(q)), "ts": p}[kind]
    return sum(u[i] * q[j] * (d[i] - d[j]) ** 2 for i in range(len(q)) for j in range(len(q))) / 4


def expected(
    name: str, p: np.ndarray, q: np.ndarray, beta: float | None = None, alpha: float | None = None
) -> float:
    if name == "abkd":
        return alpha_beta(p, q, 0.2 if alpha is None else alpha, 0.7 if beta is None else beta)
    if name.startswith("csd"):
        return concrete_score(p, q, name[4:])
    beta, alpha = 0.5 if beta is None else beta, 0.1 if alpha is None else alpha
    if name == "jsd@distillm":
        beta = 1 - beta
    m = beta * p + (1 - beta) * q
    half = (p + q) / 2
    table = {
        "kl": lambda: kl(p, q),
        "rkl": lambda: kl(q, p),
        "js": lambda: kl(p, half) / 2 + kl(q, half) / 2,
        "jsd@gkd": lambda: beta * kl(p, m) + (1 - beta) * kl(q, m),
        "jsd@distillm": lambda: beta * kl(p, m) + (1 - beta) * kl(q, m),
        "skl": lambda: kl(p, alpha * p + (1 - alpha) * q),
        "srkl": lambda: kl(q, (1 - alpha) * p + alpha * q),
        "akl@official": lambda: akl(p, q, official=True),
        "akl@dskd": lambda: akl(p, q, official=False),
        "tvd": lambda: float(np.abs(p - q).sum() / 2),
    }
    return table[name]()


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "value"),
    [
        ("kl", {}, 0.2051),
        ("rkl", {}, 0.2420),
        ("jsd@gkd", {"beta": 0.9}, 0.0210),
        ("jsd@distillm", {"beta": 0.9}, 0.0186),
        ("jsd", {"beta": 0.9}, 0.0210),
    ],
)
def test_worked_values(name: str, parameters: dict[str, float], value: float) -> None:
    found = divergences.get(name, **parameters)(logits(Q), logits(P))
    assert found.item() == pytest.approx(value, abs=5e-5)


def test_cross_entropy_form_of_kl_differs_by_the_teachers_entropy() -> None:
    entropy = -sum(p * math.log(p) for p in P)
    assert divergences.get("kl")(logits(Q), logits(P)).item() + entropy == pytest.approx(1.0570, abs=5e-5)


def test_akl_variants_part_at_the_crossing_token() -> None:
    p, q = [0.4, 0.35, 0.25], [0.3, 0.3, 0.4]
    forward, reverse = kl(np.array(p), np.array(q)), kl(np.array(q), np.array(p))
    for name, share in (("akl@official", 1 / 3), ("akl@dskd", 0.5)):
        found = divergences.get(name)(logits(q), logits(p)).item()
        assert found == pytest.approx(share * forward + (1 - share) * reverse, abs=1e-12)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_values_equal_numpy(name: str, parameters: dict[str, float]) -> None:
    student, teacher = random_logits(1), random_logits(2)
    q, p = student.softmax(-1).numpy(), teacher.softmax(-1).numpy()
    want = [expected(name, p[i], q[i], **parameters) for i in range(len(p))]
    divergence = divergences.get(name, **parameters)
    np.testing.assert_allclose(divergence(student, teacher).numpy(), want, rtol=1e-10, atol=1e-13)
    closed = divergence.value_and_grad(student, teacher)[0]
    np.testing.assert_allclose(closed.numpy(), want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["akl@official", "akl@dskd"])
def test_akl_is_the_same_with_a_wide_head(name: str) -> None:
    # Half of the mass needs more tokens than the quick look takes, so the full sort decides.
    student, teacher = random_logits(3, size=900, spread=0.3), random_logits(4, size=900, spread=0.3)
    q, p = student.softmax(-1).numpy(), teacher.softmax(-1).numpy()
    want = [expected(name, p[i], q[i]) for i in range(len(p))]
    np.testing.assert_allclose(divergences.get(name)(student, teacher).numpy(), want, rtol=1e-10)


def test_akl_gives_ties_to_the_lower_id() -> None:
    # Five equal tokens: two fit under 0.5. Only the ids can say which.
    p, q = [0.2] * 5, [0.3, 0.1, 0.35, 0.05, 0.2]
    share = 0.2 / 0.5
    want = share * kl(np.array(p), np.array(q)) + (1 - share) * kl(np.array(q), np.array(p))
    assert divergences.get("akl")(logits(q), logits(p)).item() == pytest.approx(want, abs=1e-12)


# --- gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_gradient_equals_autograd(name: str, parameters: dict[str, float]) -> None:
    student, teacher = random_logits(5).requires_grad_(), random_logits(6)
    divergence = divergences.get(name, **parameters)
    values = divergence(student, teacher)
    (want,) = torch.autograd.grad(values.sum(), student)
    found_values, found = divergence.value_and_grad(student.detach(), teacher)
    torch.testing.assert_close(found_values, values.detach(), rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("name", "parameters"), SETTINGS)
def test_gradient_equals_finite_differences(name: str, parameters: dict[str, float]) -> None:
    student, teacher = random_logits(7, rows=2, size=9), random_logits(8, rows=2, size=9)
    divergence = divergences.get(name, **parameters)
    if name.startswith("akl"):  # its weights are constants by definition
        forward, reverse = divergence._weights(teacher.softmax(-1), student.softmax(-1))  # type: ignore[attr-defined]
        kl_, rkl_ = divergences.get("kl"), divergences.get("rkl")

        def value(z: torch.Tensor) -> torch.Tensor:
            return forward[:, 0] * kl_(z, teacher) + reverse[:, 0] * rkl_(z, teacher)
    elif name.startswith("csd"):  # so are these
        u, v = divergence._weights(student.log_softmax(-1), teacher.log_softmax(-1))  # type: ignore[attr-defined]

        def value(z: torch.Tensor) -> torch.Tensor:
            d = z - teacher
            return (u[:, :, None] * v[:, None] * (d[:, :, None] - d[:, None]) ** 2).sum((1, 2)) / 4
    else:

        def value(z: torch.Tensor) -> torch.Tensor:
            return divergence(z, teacher)

    found = divergence.value_and_grad(student, teacher)[1]
    step = 1e-6
    for i in range(student.shape[1]):
        nudge = torch.zeros_like(student)
        nudge[:, i] = step
        slope = (value(student + nudge) - value(student - nudge)) / (2 * step)
        torch.testing.assert_close(found[:, i], slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", divergences.NAMES)
def test_teacher_gradient_exists(name: str) -> None:
    student, teacher = random_logits(9), random_logits(10).requires_grad_()
    divergences.get(name)(student, teacher).sum().backward()
    assert teacher.grad is not None
    assert torch.isfinite(teacher.grad).all()


# --- properties ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", divergences.NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_student_equal_to_teacher(name: str, dtype: torch.dtype) -> None:
    same = random_logits(11).to(dtype).requires_grad_()
    divergence = divergences.get(name)
    values = divergence(same, same.detach())
    (gradient,) = torch.autograd.grad(values.sum(), same)
    closed_values, closed = divergence.value_and_grad(same.detach(), same.detach())
    for tensor in (values, gradient, closed_values, closed):
        assert tensor.abs().max().item() < 1e-6
    if name.startswith("akl"):
        assert values.abs().max() == 0
        assert closed.abs().max() == 0


@pytest.mark.parametrize("name", divergences.NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(name: str, dtype: torch.dtype) -> None:
    base = random_logits(12, rows=4, size=8).to(dtype)
    extreme = base.clone()
    extreme[0, 0], extreme[1, 3], extreme[2, 1:] = 1e4, -1e4, -1e5
    extreme[3, :4] = -1e5
    divergence = divergences.get(name)
    loose = 1e4 * torch.finfo(dtype).eps  # differences of logarithms of this size
    pairs = ((extreme, base), (base, extreme), (extreme, extreme), (extreme, extreme.flip(0)))
    for student, teacher in pairs:
        leaf = student.clone().requires_grad_()
        values = divergence(leaf, teacher)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        closed_values, closed = divergence.value_and_grad(student, teacher)
        for tensor in (values, gradient, closed_values, closed):
            assert torch.isfinite(tensor).all()
        torch.testing.assert_close(closed_values, values.detach(), rtol=1e-4, atol=loose)
        torch.testing.assert_close(closed, gradient, rtol=1e-3, atol=10 * loose)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SETTINGS), st.floats(0.1, 8.0), st.floats(-50, 50))
def test_sign_shift_and_permutation(
    seed: int, setting: tuple[str, dict[str, float]], spread: float, shift: float
) -> None:
    name, parameters = setting
    divergence = divergences.get(name, **parameters)
    student, teacher = random_logits(seed, spread=spread), random_logits(seed + 1, spread=spread)
    values, gradient = divergence.value_and_grad(student, teacher)
    assert (values > -1e-12).all()
    assert gradient.sum(-1).abs().max() < 1e-9  # adding a constant to all logits changes nothing
    torch.testing.assert_close(divergence(student + shift, teacher - shift), values, rtol=1e-8, atol=1e-11)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(student.shape[1]))
    moved = divergence(student[:, order], teacher[:, order])
    torch.testing.assert_close(moved, values, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", divergences.NAMES)
def test_value_and_grad_leaves_its_arguments_alone(name: str) -> None:
    student, teacher = random_logits(13), random_logits(14)
    before = student.clone(), teacher.clone()
    divergences.get(name).value_and_grad(student, teacher)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


def test_mirrored_jsd_meet_at_one_half() -> None:
    student, teacher = random_logits(15), random_logits(16)
    values = [divergences.get(name)(student, teacher) for name in ("js", "jsd@gkd", "jsd@distillm")]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


@pytest.mark.parametrize(
    ("alpha", "beta", "like"),
    [
        (1, 0, kl),
        (0, 1, lambda p, q: kl(q, p)),
        (1, 1, lambda p, q: ((p - q) ** 2).sum() / 2),
        (0.5, 0.5, lambda p, q: 2 * ((np.sqrt(p) - np.sqrt(q)) ** 2).sum()),
        (0, 0, lambda p, q: (np.log(p / q) ** 2).sum() / 2),
        (2, 0, lambda p, q: (p**2 * np.log(p**2 / q**2) - p**2 + q**2).sum() / 4),
    ],
)
def test_known_members_of_the_alpha_beta_family(alpha: float, beta: float, like: object) -> None:
    p, q = np.array(P), np.array(Q)
    found = divergences.get("abkd", alpha=alpha, beta=beta)(logits(Q), logits(P)).item()
    assert found == pytest.approx(like(p, q), rel=1e-12)  # type: ignore[operator]


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.0, 0.7), (0.2, 0.0)])
def test_the_alpha_beta_family_has_no_jump_at_its_limits(alpha: float, beta: float) -> None:
    student, teacher = random_logits(17), random_logits(18)
    limit = divergences.get("abkd", alpha=alpha, beta=beta).value_and_grad(student, teacher)
    near = divergences.get("abkd", alpha=alpha + 1e-6, beta=beta + 1e-6).value_and_grad(student, teacher)
    for a, b in zip(limit, near, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_concrete_scores_are_half_a_variance() -> None:
    student, teacher = random_logits(19), random_logits(20)
    q, d = student.softmax(-1), student - teacher
    variance = (q * d.square()).sum(-1) - (q * d).sum(-1).square()
    torch.testing.assert_close(divergences.get("csd")(student, teacher), variance / 2)


@pytest.mark.parametrize("name", divergences.NAMES)
def test_no_rows(name: str) -> None:
    empty = torch.zeros(0, 5)
    values, gradient = divergences.get(name).value_and_grad(empty, empty)
    assert values.shape == (0,)
    assert gradient.shape == (0, 5)


# --- names --------------------------------------------------------------------------------------------


def test_names_and_defaults() -> None:
    assert divergences.get("akl").name == "akl@official"
    assert divergences.get("jsd").name == "jsd@gkd"
    assert divergences.get("csd").name == "csd@ss"
    assert divergences.get("skl").parameters == {"alpha": 0.1}
    assert divergences.get("abkd", alpha=1).parameters == {"alpha": 1, "beta": 0.7}
    assert divergences.get("jsd", beta=0.9).parameters == {"beta": 0.9}
    for name in divergences.NAMES:
        assert divergences.get(name).name == name
        assert divergences.get(name).entry is divergences.ENTRIES[name.split("@")[0]]


def test_entries_say_where_they_come_from() -> None:
    for name, entry in divergences.ENTRIES.items():
        assert entry.name == name
        assert entry.citation
        assert entry.formula
        assert entry.released


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("rlk", {}, "rkl"),
        ("akl@offical", {}, "akl@official"),
        ("kl@gkd", {}, "no divergence"),
        ("", {}, "known"),
        ("kl@", {}, "no divergence"),
        ("kl", {"beta": 0.5}, "no parameter"),
        ("skl", {"beta": 0.5}, "alpha"),
        ("jsd", {"beta": 1.0}, "between 0 and 1"),
        ("skl", {"alpha": float("nan")}, "between 0 and 1"),
        ("abkd", {"alpha": -0.1}, "alpha is at least 0"),
        ("abkd", {"beta": float("inf")}, "finite"),
        ("abkd", {"beta": float("nan")}, "finite"),
        ("csd@st", {}, "csd@ss"),
    ],
)
def test_refusals(name: str, parameters: dict[str, float], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        divergences.get(name, **parameters)


def test_import_does_not_load_torch() -> None:
    code = "import sys, dskd.divergences as d; d.get('jsd', beta=0.9); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
