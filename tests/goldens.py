"""The methods once more, in float64 NumPy, term by term from the papers' formulas.

Every function takes the numbers twice: ``x`` may be moved to find a slope, ``c`` is what a
stop-gradient holds. Nothing of dskd's arithmetic is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from dskd import heads
from dskd.method import Method, create
from dskd.vocabulary import Vocabulary
from harness.conformance import build, gradients
from harness.synthetic import World, world

Terms = dict[str, float]
Golden = Callable[[Any, Any], Terms]


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(z))


def kl(p_logits: np.ndarray, q_logits: np.ndarray) -> np.ndarray:
    """KL(p, q) of each row."""
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def nll(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.take_along_axis(log_softmax(z), labels[:, None], -1)[:, 0]


def gold_ce(x: Any, c: Any) -> float:
    """(1 - r) CE on the gold labels: those of the text at hand, or of the responses beside student text."""
    if c.gold is not None:
        return float((1 - c.r) * nll(x.gold.h @ x.W.T, c.gold.labels).sum() / c.gold.N)
    return 0.0 if c.sampled else float((1 - c.r) * nll(x.h @ x.W.T, c.labels).sum() / c.N)


def _logit(divergence: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Golden:
    def golden(x: Any, c: Any) -> Terms:
        kd = divergence(c.ht @ c.Wt.T / c.T, x.h @ x.W.T / c.T)
        return {"ce": gold_ce(x, c), "kd": c.r * kd.sum() / c.N}

    return golden


def _mixed(share: float, divergence: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Any:
    """A divergence that needs the mixture share p + (1 - share) q."""

    def of_logits(p_logits: np.ndarray, q_logits: np.ndarray) -> np.ndarray:
        p, q = softmax(p_logits), softmax(q_logits)
        return divergence(p, q, share * p + (1 - share) * q)

    return _logit(of_logits)


def _of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * np.log(a / b)).sum(-1)


def _dual_v1(x: Any, c: Any) -> Terms:
    z = x.h @ x.W.T
    carried = {k: c.ht @ v.parts["t2s.weight"].T + v.parts["t2s.bias"] for k, v in (("x", x), ("c", c))}
    in_teacher = x.h @ x.parts["s2t.weight"].T + x.parts["s2t.bias"]
    return {
        "ce": (1 - c.r) * nll(z, c.labels).sum() / c.N,
        "kd_student": c.r * kl(carried["c"] @ c.W.T / c.T, z / c.T).sum() / c.N,
        "ce_t2s": c.r * nll(carried["x"] @ c.W.T, c.labels).sum() / c.N,
        "kd_teacher": c.r * kl(c.ht @ c.Wt.T / c.T, in_teacher @ c.Wt.T / c.T).sum() / c.N,
    }


def _dual_v2(x: Any, c: Any) -> Terms:
    rows = np.arange(len(c.labels))
    wanted = (c.ht @ c.Wt.T).argmax(-1)
    return _three_terms(x, c, rows, rows, wanted, c.W.T @ np.linalg.pinv(c.Wt.T))


def _three_terms(
    x: Any, c: Any, i: np.ndarray, j: np.ndarray, wanted: np.ndarray, s2t: np.ndarray, *, gated: bool = False
) -> Terms:
    """DSKD v2 on rows (i, j); a single micro-batch, so every mean is the paper's. Gated: sums over tokens."""
    z = x.h @ x.W.T
    logits = {k: c.ht[j] @ v.parts["t2s.weight"].T @ c.W.T for k, v in (("x", x), ("c", c))}
    kept = agree = logits["c"].argmax(-1) == wanted
    if gated:
        kept = agree & (nll(logits["c"], wanted) < nll((c.h @ c.W.T)[i], wanted))
    student = kl(logits["c"][kept] / c.T, z[i[kept]] / c.T)
    teacher = kl(c.ht[j] @ c.Wt.T / c.T, x.h[i] @ s2t @ c.Wt.T / c.T)
    assert 0 < kept.sum() < len(kept), "a world in which the mask shows"
    rows = [c.N] * 3 if gated else [kept.sum(), len(i), len(i)]
    terms = student.sum(), nll(logits["x"], wanted).sum(), teacher.sum()
    student, projected, teacher = (c.r * term / count for term, count in zip(terms, rows, strict=True))
    return {"ce": gold_ce(x, c), "kd_student": student, "ce_t2s": projected, "kd_teacher": teacher}


def _words(known: Vocabulary) -> dict[bytes, int]:
    return {word: i for i, word in enumerate(known.surfaces) if i not in known.special}


def _dual_eta(x: Any, c: Any, *, gated: bool = False) -> Terms:
    ours, theirs = _words(c.student_words), _words(c.teacher_words)
    common = sorted(set(ours) & set(theirs))
    a = [ours[w] for w in common] + [c.student_words.eos]
    b = [theirs[w] for w in common] + [c.teacher_words.eos]
    s2t = c.W[a].T @ np.linalg.pinv(c.Wt[b].T)
    to_student = dict(zip(b, a, strict=True))
    best = (c.ht @ c.Wt.T).argmax(-1)
    spans = {span: i for i, span in enumerate(c.spans)}
    pairs = [(spans[span], j) for j, span in enumerate(c.teacher_spans) if span in spans]
    known = [(i, j, to_student[best[j]]) for i, j in pairs if best[j] in to_student]
    assert len(known) < len(pairs) < len(c.labels)
    i, j, wanted = np.array(known).T
    return _three_terms(x, c, i, j, wanted, s2t, gated=gated)


def _gated(x: Any, c: Any) -> Terms:
    return _dual_eta(x, c, gated=True)


def _examples(c: Any) -> Iterator[tuple[slice, slice]]:
    for (a, b), (m, n) in zip(c.bounds, c.teacher_bounds, strict=True):
        yield slice(a, b), slice(m, n)


def _queries(v: Any, s: slice) -> np.ndarray:
    question = np.concatenate([v.e[v.inputs[s]], v.e[v.labels[s]]], -1)
    return question @ v.parts["query.weight"].T + v.parts["query.bias"]


def _keys(c: Any, t: slice, over: slice) -> np.ndarray:
    states = np.concatenate([c.et[c.teacher_inputs], c.et[c.teacher_labels]], -1)
    return states[t] / states[over].std(ddof=1)


def _cma(x: Any, c: Any, *, whole_batch: bool = False) -> Terms:
    z = x.h @ x.W.T
    ce = (1 - c.r) * nll(z, c.labels).sum() / c.N
    out = {"ce": ce, "kd_student": 0.0, "ce_t2s": 0.0, "kd_teacher": 0.0}
    for s, t in _examples(c):
        over = slice(None) if whole_batch else t
        target = c.et[c.teacher_labels]
        keys = _keys(c, t, over)
        value = c.ht[t] / c.ht[over].std(ddof=1) + target[t] / target[over].std(ddof=1)
        projected = {}
        for k, v in (("x", x), ("c", c)):
            asked = _queries(v, s)
            align = asked @ keys.T / np.sqrt(keys.shape[1])
            projected[k] = softmax(align) @ (value @ v.parts["t2s.weight"].T + v.parts["t2s.bias"]) @ c.W.T
            if k == "x":
                carried = softmax(align.T) @ (x.h[s] @ x.parts["s2t.weight"].T + x.parts["s2t.bias"])
        kept = projected["c"].argmax(-1) == c.labels[s]
        out["kd_student"] += c.r / c.N * kl(projected["c"][kept] / c.T, z[s][kept] / c.T).sum()
        out["ce_t2s"] += c.r / c.N * nll(projected["x"], c.labels[s]).sum()
        out["kd_teacher"] += c.r / c.N * kl(c.ht[t] @ c.Wt.T / c.T, carried @ c.Wt.T / c.T).sum()
    assert out["kd_student"] > 0, "a world in which some projected argmax is the gold label"
    return out


def _lin(v: Any, name: str, a: np.ndarray) -> np.ndarray:
    return a @ v.parts[f"matching.{name}.weight"].T + v.parts[f"matching.{name}.bias"]


def _tower(v: Any, name: str, a: np.ndarray, *, gated: bool) -> np.ndarray:
    if gated:
        moved = _lin(v, f"{name}.highway", a)
        gate = 1 / (1 + np.exp(-moved))
        a = gate * np.maximum(moved, 0) + (1 - gate) * a
    inner = _lin(v, f"{name}.first", a)
    return _lin(v, f"{name}.second", np.where(inner > 0, inner, 0.1 * inner))


def _softplus(a: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, a)


def _adversarial(f: Any, q: Any, s: slice, t: slice, over: slice) -> float:
    """Discriminator of ``f``, queries of ``q``."""
    real = _tower(f, "discriminator", _keys(f, t, over), gated=True)
    fake = _tower(f, "discriminator", _queries(q, s), gated=True)
    return float(_softplus(-real).mean() + _softplus(fake).mean())


def _ga(x: Any, c: Any) -> Terms:
    """The value at x = c; for slopes the discriminator descends and the queries ascend."""
    kq = 0.0
    for s, t in _examples(c):
        share = (s.stop - s.start) / c.N
        kq += share * (
            _adversarial(x, c, s, t, t) - _adversarial(c, x, s, t, t) + _adversarial(c, c, s, t, t)
        )
    return {**_cma(x, c), "kq": kq}


def _ga_released(x: Any, c: Any) -> Terms:
    everything = slice(None)
    kq = _adversarial(c, c, everything, everything, everything) / c.N
    return {**_cma(x, c, whole_batch=True), "kq": kq}


def _unit(a: np.ndarray) -> np.ndarray:
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


def _ct_halves(g: Any, n: Any, q: Any, s: slice, t: slice, over: slice) -> dict[str, np.ndarray]:
    """Costs by key and by query: critics of ``g``, navigators of ``n``, queries of ``q``."""
    keys, queries = _keys(g, t, over), _queries(q, s)
    out = {}
    for kind in ("tokens", "features"):
        suffix = "" if kind == "tokens" else "_features"
        a, b = (_unit(_tower(g, f"critic{suffix}", y, gated=True)) for y in (keys, queries))
        u, v = (_unit(_tower(n, f"navigator{suffix}", y, gated=False)) for y in (keys, queries))
        if kind == "features":
            size = max(len(a), len(b))
            a, b, u, v = (np.pad(y, ((0, size - len(y)), (0, 0))).T for y in (a, b, u, v))
        cost = np.linalg.norm(a[:, None] - b[None], axis=-1)
        pull = u @ v.T
        out[f"{kind} by key"] = (cost * softmax(pull)).sum(1)
        out[f"{kind} by query"] = (cost * softmax(pull.T).T).sum(0)
    return out


def _ct(x: Any, c: Any) -> Terms:
    kq = 0.0
    for s, t in _examples(c):

        def value(g: Any, n: Any, q: Any, s: slice = s, t: slice = t) -> float:
            return sum(half.mean() for half in _ct_halves(g, n, q, s, t, t).values()) / 2

        kq += (s.stop - s.start) / c.N * (value(c, x, x) - value(x, c, c) + value(c, c, c))
    return {**_cma(x, c), "kq": kq}


def _ct_released(x: Any, c: Any) -> Terms:
    halves = [_ct_halves(c, c, x, s, t, slice(None)) for s, t in _examples(c)]
    means = [np.concatenate([half[key] for half in halves]).mean() for key in halves[0]]
    return {**_cma(x, c, whole_batch=True), "kq": sum(means) / 2 / c.N}


def _uld(weight_ce: float, weight_uld: float) -> Golden:
    def golden(x: Any, c: Any) -> Terms:
        z, total = x.h @ x.W.T, 0.0
        for (a, b), (m, n) in zip(c.bounds, c.teacher_bounds, strict=True):
            for k in range(min(b - a, n - m)):
                q, p = -np.sort(-softmax(z[a + k])), -np.sort(-softmax(c.ht[m + k] @ c.Wt.T))
                size = max(len(q), len(p))
                total += np.abs(np.pad(q, (0, size - len(q))) - np.pad(p, (0, size - len(p)))).sum()
        return {"ce": weight_ce * nll(z, c.labels).sum() / c.N, "kd": weight_uld * total / c.N}

    return golden


def _levenshtein(a: bytes, b: bytes) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


def _mined(x: Any, c: Any) -> Terms:
    ours, theirs = _words(c.student_words), _words(c.teacher_words)
    place = {c.teacher_words.eos: c.student_words.eos}
    for word, j in theirs.items():
        place[j] = min(ours.items(), key=lambda item: (_levenshtein(word, item[0]), item[1]))[1]
    z = x.h @ x.W.T
    partner = dict(c.pairs.tolist())
    assert 0 < len(partner) < len(c.labels)
    matched = other = 0.0
    for i, label in enumerate(c.labels):
        if i in partner:
            target = np.full(z.shape[1], -1e5)
            logits = c.ht[partner[i]] @ c.Wt.T / c.T
            for j, k in place.items():
                target[k] = max(target[k], logits[j])
            matched += kl(target[None], z[i][None] / c.T)[0]
        else:
            other += nll(z[i][None] / c.T, np.array([label]))[0]
    return {
        "ce": (1 - c.r) * nll(z, c.labels).sum() / c.N,
        "kd": c.r * matched / c.N,
        "kd_unmatched": c.r * other / c.N,
    }


def _alpha_beta(a: float, b: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def divergence(p_logits: np.ndarray, q_logits: np.ndarray) -> np.ndarray:
        p, q = softmax(p_logits), softmax(q_logits)
        inner = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
        return -inner.sum(-1) / (a * b)

    return divergence


def _concrete_score(x: Any, c: Any) -> Terms:
    z, held, t = x.h @ x.W.T, c.h @ c.W.T, c.ht @ c.Wt.T
    q, d = softmax(held / c.T), (z - t) / c.T
    pairs = q[:, :, None] * q[:, None] * (d[:, :, None] - d[:, None]) ** 2
    return {
        "ce": (1 - c.r) * nll(z, c.labels).sum() / c.N,
        "kd": c.r * pairs.sum() / 4 / c.N,
    }


def _toolkit(x: Any, c: Any) -> Terms:
    z = x.h @ x.W.T
    return {
        "ce": nll(z, c.labels).sum() / c.N,
        "kd": 100 * kl(c.ht @ c.Wt.T / 10, z / 10).sum() / c.N,
    }


def _hidden(x: Any, c: Any) -> Terms:
    terms = _logit(kl)(x, c)
    found = x.h @ x.parts["fit.weight"].T + x.parts["fit.bias"]
    return {**terms, "hidden": c.r * ((found - c.ht) ** 2).mean(-1).sum() / c.N}


def _chunks(c: Any) -> list[tuple[list[int], list[int]]]:
    """Positions of both models in every chunk: walk until both have read up to the same byte."""
    found = []
    for example in sorted({span[0] for span in c.spans}):
        sides = [
            [(place, span[2]) for place, span in enumerate(spans) if span[0] == example]
            for spans in (c.spans, c.teacher_spans)
        ]
        left, right = sides[0][:-1], sides[1][:-1]  # without EOS
        mine: list[int] = []
        other: list[int] = []
        while left or right:
            behind = left if left and (not right or left[0][1] <= right[0][1]) else right
            (mine if behind is left else other).append(behind.pop(0)[0])
            if mine and other and c.spans[mine[-1]][2] == c.teacher_spans[other[-1]][2]:
                found.append((mine, other))
                mine, other = [], []
        assert not mine and not other
        found.append(([sides[0][-1][0]], [sides[1][-1][0]]))
    assert any(len(a) > 1 and len(b) > 1 for a, b in found), (
        "a world with chunks of several tokens on both sides"
    )
    assert any(len(a) == len(b) == 1 for a, b in found)
    return found


def _alm(x: Any, c: Any) -> Terms:
    z, t = log_softmax(x.h @ x.W.T), log_softmax(c.ht @ c.Wt.T)
    total = 0.0
    for mine, other in _chunks(c):
        q = np.prod([np.exp(z[i, c.labels[i]]) for i in mine]) ** (1 / 100)
        p = np.prod([np.exp(t[j, c.teacher_labels[j]]) for j in other]) ** (1 / 100)
        total += 100 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    return {"ce": (1 - c.r) * nll(x.h @ x.W.T, c.labels).sum() / c.N, "kd": c.r * total / c.N}


def _overlap(c: Any) -> tuple[list[int], list[int]]:
    ours, theirs = _words(c.student_words), _words(c.teacher_words)
    common = sorted(set(ours) & set(theirs))
    eos = c.student_words.eos, c.teacher_words.eos
    return [ours[w] for w in common] + [eos[0]], [theirs[w] for w in common] + [eos[1]]


def _sorted_gap(q: np.ndarray, p: np.ndarray) -> float:
    size = max(len(q), len(p))
    q, p = (np.pad(-np.sort(-y), (0, size - len(y))) for y in (q, p))
    return float(np.abs(q - p).sum())


def _gold(share: float | None) -> Golden:
    def golden(x: Any, c: Any) -> Terms:
        z, t = softmax(x.h @ x.W.T), softmax(c.ht @ c.Wt.T)
        ours, theirs = _overlap(c)
        w = len(theirs) / t.shape[1] if share is None else share
        total = 0.0
        for mine, other in _chunks(c):
            q = z[mine[0]] * np.prod([z[i, c.labels[i]] for i in mine[1:]])
            p = t[other[0]] * np.prod([t[j, c.teacher_labels[j]] for j in other[1:]])
            if w == 0:
                total += _sorted_gap(q, p)
                continue
            a, b = p[theirs], q[ours]
            m = (a + b) / 2
            mixed = (a * np.log(a / m) + b * np.log(b / m)).sum() / 2
            total += w * mixed + (1 - w) * _sorted_gap(np.delete(q, ours), np.delete(p, theirs))
        return {"ce": (1 - c.r) * nll(x.h @ x.W.T, c.labels).sum() / c.N, "kd": c.r * total / c.N}

    return golden


def _shared(divergence: Callable[[np.ndarray, np.ndarray], np.ndarray], *, chunked: bool) -> Golden:
    def golden(x: Any, c: Any) -> Terms:
        z, t = x.h @ x.W.T, c.ht @ c.Wt.T
        ours, theirs = _overlap(c)
        spans = {span: i for i, span in enumerate(c.spans)}
        exact = [([spans[span]], [j]) for j, span in enumerate(c.teacher_spans) if span in spans]
        total = 0.0
        for mine, other in _chunks(c) if chunked else exact:
            q, p = z[mine[0]][ours], t[other[0]][theirs]
            if len(mine) > 1 or len(other) > 1:
                q = np.append(q, np.mean([z[i, c.labels[i]] for i in mine]))
                p = np.append(p, np.mean([t[j, c.teacher_labels[j]] for j in other]))
            total += divergence(p[None], q[None])[0]
        return {"ce": (1 - c.r) * nll(z, c.labels).sum() / c.N, "kd": c.r * total / c.N}

    return golden


def _ranked(h: np.ndarray, W: np.ndarray, order: np.ndarray) -> np.ndarray:
    z = h @ W.T
    return softmax(z / (z.std(-1, ddof=1, keepdims=True) + 1e-4))[:, order]


def _order(h: np.ndarray, W: np.ndarray, kept: int) -> np.ndarray:
    z = h @ W.T
    return np.argsort(-softmax(z / (z.std(-1, ddof=1, keepdims=True) + 1e-4)).sum(0))[:kept]


def _multilevel(top: int) -> Golden:
    def golden(x: Any, c: Any) -> Terms:
        out = {"ce": nll(x.h @ x.W.T, c.labels).sum() / c.N, "kd": 0.0, "kd_log": 0.0, "sinkhorn": 0.0}
        kept = min(top, len(c.W), len(c.Wt))
        for s, t in _examples(c):
            q = _ranked(x.h[s], x.W, _order(c.h[s], c.W, kept))
            p = _ranked(c.ht[t], c.Wt, _order(c.ht[t], c.Wt, kept))
            size = min(len(q), len(p))
            out["kd"] += 0.15 / c.N * np.abs(q[:size] - p[:size]).sum()
            out["kd_log"] += 0.015 / c.N * (p[:size] * np.log(p[:size] / q[:size])).sum()
            cost = np.abs(q[:, None] - p[None]).sum(-1)
            plan = np.exp(-cost / 0.1)
            for _ in range(20):
                plan /= plan.sum(1, keepdims=True) * len(q)
                plan /= plan.sum(0, keepdims=True) * len(p)
            out["sinkhorn"] += 0.015 / c.N * len(q) * (plan * cost).sum()
        return out

    return golden


def _imitkd(x: Any, c: Any) -> Terms:
    best = (c.ht @ c.Wt.T).argmax(-1)
    assert (best != c.labels).any()
    return {"ce": 0.0, "ce_teacher": nll(x.h @ x.W.T, best).sum() / c.N}


def _imitkd_full(x: Any, c: Any) -> Terms:
    return {"ce": 0.0, "kd": kl(c.ht @ c.Wt.T, x.h @ x.W.T).sum() / c.N}


def _minillm(x: Any, c: Any) -> Terms:
    """alpha 0.2, eps 0.2; a text at a time, a token at a time."""
    log = {k: log_softmax(v.h @ v.W.T) for k, v in (("x", x), ("c", c))}
    log_p = log_softmax(c.ht @ c.Wt.T)
    single = long = 0.0
    cut = 0
    for a, b in c.bounds:
        for t in range(a, b):
            y = c.labels[t]
            drawn = 0.2 * np.exp(log_p[t, y]) + 0.8 * np.exp(log["c"][t, y])
            later = [log_p[u, c.labels[u]] - log["c"][u, c.labels[u]] for u in range(t + 1, b)]
            mean = float(np.mean(later)) if later else 0.0
            weight = np.exp(log["x"][t, y]) / drawn
            bounded = min(max(weight, 0.8), 1.2)
            cut += weight * mean > bounded * mean
            long -= min(weight * mean, bounded * mean)
            kept = np.exp(log["c"][t, y]) / drawn
            single += kept * (np.exp(log["x"][t]) * (log["x"][t] - log_p[t])).sum()
    assert cut > 0, "a world in which some weight is clipped"
    return {"ce": gold_ce(x, c), "kd_single": c.r * single / c.N, "kd_long": c.r * long / c.N}


def _minillm_released(x: Any, c: Any) -> Terms:
    log = {k: log_softmax(v.h @ v.W.T) for k, v in (("x", x), ("c", c))}
    log_p = log_softmax(c.ht @ c.Wt.T)
    rows = np.arange(len(c.labels))
    reward = 2 * (log_p - log["c"])[rows, c.labels]
    gain = np.zeros(len(rows))
    for a, b in c.bounds:
        for t in range(a, b):
            gain[t] = sum(0.95 ** (u - t) * reward[u] for u in range(t, b)) / (b - t)
    gain = (gain - gain.mean()) / np.sqrt(gain.var() + 1e-8)
    drawn = (0.2 * np.exp(log_p) + 0.8 * np.exp(log["c"]))[rows, c.labels]
    weight = np.exp(log["x"])[rows, c.labels] / drawn
    long = -np.minimum(weight * gain, np.clip(weight, 0.8, 1.2) * gain).sum()
    single = (np.exp(log["x"]) * (log["x"] - log_p)).sum()
    return {"ce": gold_ce(x, c), "kd_single": c.r * single / c.N, "kd_long": c.r * long / c.N}


GOLDENS: dict[str, Golden] = {
    "kl": _logit(kl),
    "abkd": _logit(_alpha_beta(0.2, 0.7)),
    "csd": _concrete_score,
    "glmkd-kd": _toolkit,
    "hidden-mse": _hidden,
    "kl:on_policy=1": _logit(kl),
    "rkl": _logit(lambda p, q: kl(q, p)),
    "srkl:on_policy=1": _mixed(0.9, lambda p, q, m: _of(q, m)),
    "dskd-v2:on_policy=1": _dual_v2,
    "dskd-eta:on_policy=1": _dual_eta,
    "gkd": _mixed(0.5, lambda p, q, m: (_of(p, m) + _of(q, m)) / 2),
    "gkd/jsd:beta=0.1": _mixed(0.1, lambda p, q, m: 0.1 * _of(p, m) + 0.9 * _of(q, m)),
    "gkd/kl:rate=0.5": _logit(kl),
    "gkd:on_policy=0": _mixed(0.5, lambda p, q, m: (_of(p, m) + _of(q, m)) / 2),
    "distillm": _mixed(0.1, lambda p, q, m: _of(p, m)),
    "distillm/srkl": _mixed(0.9, lambda p, q, m: _of(q, m)),
    "imitkd": _imitkd,
    "imitkd@full": _imitkd_full,
    "minillm": _minillm,
    "minillm@released": _minillm_released,
    "dskd-v1": _dual_v1,
    "dskd-v2": _dual_v2,
    "dskd-eta": _dual_eta,
    "dskd-gated": _gated,
    "dskd-cma": _cma,
    "dskd-cma-ga:kq_width=7": _ga,
    "dskd-cma-ga@released:kq_width=7": _ga_released,
    "dskd-cma-ct:kq_width=7": _ct,
    "dskd-cma-ct@released:kq_width=7": _ct_released,
    "uld": _uld(0.5, 0.5),
    "uld@original": _uld(1.0, 1.5),
    "mined": _mined,
    "alm": _alm,
    "gold": _gold(None),
    "gold@uld": _gold(0.0),
    "simple-ctkd": _shared(kl, chunked=False),
    "multilevel-ot": _multilevel(50),
    "multilevel-ot:top=6": _multilevel(6),
    "simct": _shared(lambda p, q: kl(q, p), chunked=True),
}


def numbers(here: World, method: Method, parts: Any) -> SimpleNamespace:
    """Everything a golden needs, as float64 arrays."""
    batch, pair = here.batch(), here.pair
    s, t = batch.student, batch.teacher
    assert t is not None and batch.pairs is not None and pair.teacher is not None
    named = dict(parts.named_parameters()) if parts is not None else {}
    arrays = {
        "h": s.hidden, "W": s.head, "e": s.embedding, "labels": s.labels, "inputs": s.inputs,
        "ht": t.hidden, "Wt": t.head, "et": t.embedding,
        "teacher_labels": t.labels, "teacher_inputs": t.inputs,
        "pairs": torch.stack([batch.pairs.student, batch.pairs.teacher], -1),
    }  # fmt: skip
    edges = s.offsets.tolist(), t.offsets.tolist()
    gold = None
    if batch.gold is not None:
        view = batch.gold.view
        gold = SimpleNamespace(
            h=view.hidden.detach().numpy().copy(), labels=view.labels.numpy(), N=batch.gold.normaliser
        )
    return SimpleNamespace(
        **{name: value.detach().numpy().copy() for name, value in arrays.items()},
        parts={name: value.detach().numpy().copy() for name, value in named.items()},
        T=getattr(method.options, "temperature", 1.0),
        r=getattr(method.options, "rate", 0.5),
        N=batch.normaliser,
        gold=gold,
        sampled=batch.sampled is not None,
        bounds=list(zip(edges[0], edges[0][1:], strict=False)),
        teacher_bounds=list(zip(edges[1], edges[1][1:], strict=False)),
        spans=[(n, *map(int, span)) for n, e in enumerate(here.examples) for span in e.student.spans],
        teacher_spans=[(n, *map(int, span)) for n, e in enumerate(here.examples) for span in e.teacher.spans],
        student_words=pair.student.vocabulary,
        teacher_words=pair.teacher.vocabulary,
    )


def compare(method: Method, golden: Golden, seed: int = 0) -> None:
    """Terms to 1e-10 and the slope along every trained thing to 1e-6, tiled and plain."""
    here = world(method, seed)
    parts = build(method, here.pair)
    base = numbers(here, method, parts)
    wanted = golden(base, base)
    made = gradients(method, parts, here.batch())
    got = {name: float(value) for name, value in made.loss.terms.items()}
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert abs(got[name] - value) <= 1e-10 * max(1.0, abs(value)), (name, got[name], value)
    with heads.reference():
        plain = method.loss(here.batch(), parts).total
    assert abs(float(plain.detach()) - sum(wanted.values())) <= 1e-10 * max(1.0, abs(sum(wanted.values())))
    draw = np.random.default_rng(3)
    for name, gradient in made.all().items():
        way = draw.normal(size=tuple(gradient.shape))
        way /= np.linalg.norm(way)
        slope = (_moved(golden, base, name, 1e-5 * way) - _moved(golden, base, name, -1e-5 * way)) / 2e-5
        directional = float((gradient.numpy() * way).sum())
        assert abs(directional - slope) <= 1e-6 * max(1.0, abs(slope)), (name, directional, slope)


def _moved(golden: Golden, base: SimpleNamespace, name: str, by: np.ndarray) -> float:
    moved = copy.deepcopy(base)
    if name in ("hidden", "head"):
        key = {"hidden": "h", "head": "W"}[name]
        setattr(moved, key, getattr(moved, key) + by)
    elif name == "gold":
        moved.gold.h += by
    else:
        moved.parts[name] += by
    return sum(golden(moved, base).values())


def find(address: str) -> tuple[Method, Golden]:
    return create(address), GOLDENS[address]
