"""Methods against independent NumPy formulas, and the finer points that those leave open."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from goldens import GOLDENS, compare, find

from baselines.chunks import Chunks, MergedDistance, both_chunks
from baselines.transport import sinkhorn
from dskd import heads
from dskd.batch import Pair, Pairs
from dskd.method import MethodError, create
from dskd.parts import example_std, padded_rows
from harness import methods
from harness.conformance import build, gradients
from harness.synthetic import STUDENT, TEACHER, cut, world

methods.load()
TEACHER_ROW, STUDENT_ROW = [0.70, 0.20, 0.08, 0.02], [0.40, 0.30, 0.20, 0.10]


@pytest.mark.parametrize("address", GOLDENS)
@pytest.mark.parametrize("seed", [0, 2])
def test_values_and_slopes_are_those_of_the_formula(address: str, seed: int) -> None:
    compare(*find(address), seed=seed)


def test_worked_values_of_the_conventions_page() -> None:
    """methods.md section 2, through the method itself: one position, logits = log p."""
    p, q = (torch.tensor([row], dtype=torch.float64).log() for row in (TEACHER_ROW, STUDENT_ROW))
    wanted = {"kl": 0.2051, "rkl": 0.2420, "tvd": 0.3}
    wanted |= {"jsd@gkd:beta=0.9": 0.0210, "jsd@distillm:beta=0.9": 0.0186}
    eye = torch.eye(4, dtype=torch.float64)
    for address, value in wanted.items():
        method = create(f"{address}:temperature=1:rate=1")
        batch = world(method).batch()
        one = torch.zeros(1, dtype=torch.int64)
        student = replace(batch.student, hidden=q, head=eye, labels=one)
        teacher = replace(batch.teacher, hidden=p, head=eye, labels=one)
        made = method.loss(replace(batch, student=student, teacher=teacher, normaliser=1.0), None)
        assert made.total.item() == pytest.approx(value, abs=5e-5)


def test_ideal_projectors_start_at_the_pseudo_inverse() -> None:
    for address, same in (("dskd-v2", True), ("dskd-eta", False)):
        here = world(create(address))
        parts = build(create(address), here.pair)
        s, t = here.pair.student.head.detach().numpy(), here.pair.teacher.head.numpy()
        if not same:
            ours, theirs = here.pair.vocabulary.overlap
            s, t = s[ours], t[theirs]
        np.testing.assert_allclose(parts.t2s.weight.detach().numpy().T, t.T @ np.linalg.pinv(s.T), atol=1e-9)


def test_random_start_leaves_the_student_to_teacher_map_computed() -> None:
    here = world(create("dskd-v2"))
    ideal, random = (build(create(a), here.pair) for a in ("dskd-v2", "dskd-v2:init=random"))
    assert not torch.allclose(ideal.t2s.weight, random.t2s.weight)
    h, head = here.batch().student.hidden, here.pair.student.head
    assert torch.equal(ideal.to_teacher(h, head), random.to_teacher(h, head))


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}])
def test_the_map_follows_the_head_that_an_optimiser_moves(options: dict[str, bool]) -> None:
    method = create("dskd-v2")
    here = world(method)
    padding = torch.zeros(3, 6, dtype=torch.float64)
    weight = torch.nn.Parameter(torch.cat([here.pair.student.head.detach(), padding]))
    head = weight[: STUDENT.size]
    parts = build(method, Pair(replace(here.pair.student, head=head), here.pair.teacher))
    states = here.batch().student.hidden.detach()
    before = parts.to_teacher(states, head)
    assert parts._matrix(head.detach()) is parts._matrix(head.detach())
    optimiser = torch.optim.AdamW([weight], lr=0.1, **options)
    head.square().sum().backward()
    optimiser.step()
    after = parts.to_teacher(states, head)
    assert not torch.allclose(before, after)
    fresh = torch.linalg.pinv(here.pair.teacher.head.T)
    torch.testing.assert_close(after, states @ (head.detach().T @ fresh))


def test_kdflow_reads_the_head_of_the_start() -> None:
    moving, frozen = create("dskd-v2"), create("dskd-v2@kdflow")
    here = world(moving)
    a, b = build(moving, here.pair), build(frozen, here.pair)
    batch = here.batch()
    assert torch.equal(moving.loss(batch, a).total, frozen.loss(batch, b).total)
    with torch.no_grad():
        here.pair.student.head.mul_(1.5)
    now = {k: float(v) for k, v in frozen.loss(batch, b).terms.items()}
    other = {k: float(v) for k, v in moving.loss(batch, a).terms.items()}
    assert now["ce"] == pytest.approx(other["ce"])
    assert now["ce_t2s"] != pytest.approx(other["ce_t2s"])
    assert now["kd_teacher"] != pytest.approx(other["kd_teacher"])
    assert "frozen_head" in b.state_dict(), "a resumed run needs the head of the start"


def test_v1_is_zero_between_equals_once_its_projectors_are_identities() -> None:
    method = create("dskd-v1")
    here = world(method, equal=True)
    parts = build(method, here.pair)
    with torch.no_grad():
        for linear in (parts.t2s, parts.s2t):
            linear.weight.copy_(torch.eye(6))
            linear.bias.zero_()
    terms = method.loss(here.batch(), parts).terms
    assert float(terms["kd_student"]) == pytest.approx(0, abs=1e-12)
    assert float(terms["kd_teacher"]) == pytest.approx(0, abs=1e-12)


def test_eta_over_one_vocabulary_is_v2() -> None:
    eta, v2 = create("dskd-eta/srkl"), create("dskd-v2/srkl")
    here = world(eta, same=True)
    a = gradients(eta, build(eta, here.pair), here.batch())
    b = gradients(v2, build(v2, here.pair), here.batch())
    torch.testing.assert_close(a.loss.total, b.loss.total, rtol=1e-12, atol=0)
    for name, value in b.all().items():
        torch.testing.assert_close(a.all()[name], value)


def test_eta_without_any_pair_is_gold_cross_entropy_alone() -> None:
    method = create("dskd-eta")
    here = world(method)
    parts = build(method, here.pair)
    none = torch.zeros(0, dtype=torch.int64)
    made = gradients(method, parts, replace(here.batch(), pairs=Pairs(none, none)))
    assert made.loss.total.item() == float(made.loss.terms["ce"])
    assert not bool(made.parts["t2s.weight"].any())


def test_agreement_threshold_opens_the_mask() -> None:
    always, sometimes = create("dskd-v2:space=student"), create("dskd-v2:space=student:t2s_agreement=0")
    here = world(always)
    parts, batch = build(always, here.pair), here.batch()
    t = batch.teacher
    projected = (t.hidden @ parts.t2s.weight.T @ batch.student.head.T).detach()
    kl = create("kl").divergence
    each = kl(batch.student.hidden @ batch.student.head.T / 2, projected / 2).detach()
    kept = projected.argmax(-1) == (t.hidden @ t.head.T).argmax(-1)
    assert 0 < int(kept.sum()) < len(kept)
    masked, opened = (float(m.loss(batch, parts).terms["kd_student"]) for m in (always, sometimes))
    assert masked == pytest.approx(0.5 * float(each[kept].mean()))
    assert opened == pytest.approx(0.5 * float(each.mean()))


@pytest.mark.parametrize("seed", [38, 113])
def test_the_gate_closes_where_the_student_knows_more(seed: int) -> None:
    """Worlds with rows where the argmaxes agree and the student is the surer of the two."""
    gated, agreeing = create("dskd-gated"), create("dskd-gated:gate=agrees")
    compare(*find("dskd-gated"), seed=seed)
    here = world(gated, seed)
    parts, batch = build(gated, here.pair), here.batch()
    shut, open_ = (float(m.loss(batch, parts).terms["kd_student"]) for m in (gated, agreeing))
    assert 0 < shut < open_


def test_without_a_gate_and_over_one_vocabulary_only_the_mean_differs() -> None:
    """dskd-v2 divides the student-space KD by the kept rows, dskd-gated by all tokens."""
    gated, v2 = create("dskd-gated:gate=agrees"), create("dskd-v2")
    here = world(gated, same=True)
    parts, batch = build(gated, here.pair), here.batch()
    a, b = (method.loss(batch, parts).terms for method in (gated, v2))
    t, s = batch.teacher, batch.student
    kept = (t.hidden @ parts.t2s.weight.T @ s.head.T).argmax(-1) == (t.hidden @ t.head.T).argmax(-1)
    share = float(kept.double().mean())
    assert 0 < share < 1
    assert float(a["kd_student"]) == pytest.approx(share * float(b["kd_student"]))
    for name in ("ce", "ce_t2s", "kd_teacher"):
        torch.testing.assert_close(a[name], b[name])


def test_own_means_are_weighted_by_the_micro_batch() -> None:
    """Two micro-batches: each mean counts by its share of the global batch's tokens."""
    method = create("dskd-v2:space=student:rate=1")
    here = world(method)
    parts = build(method, here.pair)
    total = here.batch().normaliser
    for rows in ([0, 1], [2, 3, 4]):
        alone = here.batch(rows, normaliser=float(len(here.batch(rows).student.labels)))
        part = here.batch(rows)
        a, b = (method.loss(x, parts).total.item() for x in (alone, part))
        assert b == pytest.approx(a * alone.normaliser / total)


def test_released_attention_takes_one_std_over_the_batch() -> None:
    here = world(create("dskd-cma"))
    default, released = (build(create(a), here.pair) for a in ("dskd-cma", "dskd-cma@released"))
    one, all_ = here.batch([0]), here.batch()
    for x, y in zip(default(one.student, one.teacher), released(one.student, one.teacher), strict=True):
        torch.testing.assert_close(x, y)
    assert not torch.allclose(default(all_.student, all_.teacher)[0], released(all_.student, all_.teacher)[0])


KQ = ("dskd-cma-ga:kq_width=8", "dskd-cma-ct:kq_width=8")


@pytest.mark.parametrize("address", KQ)
def test_key_query_matching_adds_to_attention_and_nothing_else(address: str) -> None:
    plain, matched = create("dskd-cma"), create(f"{address}:kq_rate=0")
    here = world(plain)
    a = gradients(plain, build(plain, here.pair), here.batch())
    b = gradients(matched, build(matched, here.pair), here.batch())
    assert float(b.loss.terms["kq"]) == 0
    assert torch.equal(a.loss.total, b.loss.total)
    for name, value in a.all().items():  # the same projectors from the same seed, the same gradients
        assert torch.equal(b.all()[name], value)
    assert not any(bool(v.any()) for name, v in b.parts.items() if name.startswith("matching"))


@pytest.mark.parametrize(("address", "reaches"), zip(KQ, (False, True), strict=True))
def test_what_the_released_matching_trains(address: str, reaches: bool) -> None:
    """GA: nothing. CT: the queries, by critics that stay as they were drawn."""
    name, _, options = address.partition(":")
    plain, released = create("dskd-cma@released"), create(f"{name}@released:{options}")
    here = world(plain)
    a = gradients(plain, build(plain, here.pair), here.batch())
    parts = build(released, here.pair)
    b = gradients(released, parts, here.batch())
    assert float(b.loss.terms["kq"]) > 0
    assert not any(p.requires_grad for p in parts.matching.parameters())
    assert a.parts.keys() == b.parts.keys()
    changed = {name for name, value in a.all().items() if not torch.equal(b.all()[name], value)}
    assert changed == ({"query.weight", "query.bias"} if reaches else set())


@pytest.mark.parametrize("address", KQ)
def test_the_described_matching_trains_its_layers_and_the_queries(address: str) -> None:
    method = create(address)
    here = world(method)
    parts = build(method, here.pair)
    student, teacher = here.batch().student, here.batch().teacher
    value = parts.match(parts(student, teacher), student, teacher)
    assert value.shape == (5,)
    targets = [parts.query.weight, *parts.matching.parameters()]
    assert all(bool(g.any()) for g in torch.autograd.grad(value.sum(), targets))


@pytest.mark.parametrize("address", KQ)
def test_matching_drops_out_in_training_only(address: str) -> None:
    method = create(address)
    here = world(method)
    parts, batch = build(method, here.pair), here.batch()

    def kq() -> float:
        return float(method.loss(batch, parts).terms["kq"])

    assert kq() == kq()
    parts.train()
    assert kq() != kq()


def test_a_discriminator_learns_while_the_queries_deceive() -> None:
    """A step along the gradients: the discriminator alone lowers the cost, the queries alone raise it."""
    method = create("dskd-cma-ga:kq_width=8:rate=0")
    here = world(method)
    for mine, sign in (("matching", -1), ("query", 1)):
        parts, batch = build(method, here.pair), here.batch()
        before = method.loss(batch, parts)
        before.total.backward()
        with torch.no_grad():
            for name, parameter in parts.named_parameters():
                if name.startswith(mine):
                    parameter.sub_(1e-3 * parameter.grad)
        change = float(method.loss(batch, parts).terms["kq"] - before.terms["kq"])
        assert change * sign > 0


def test_example_std_is_torch_s() -> None:
    offsets = torch.tensor([0, 3, 4, 9])
    x = torch.randn(9, 5, dtype=torch.float64) + 3
    got = example_std(x, offsets).squeeze(-1)
    for a, b in ((0, 3), (3, 4), (4, 9)):
        torch.testing.assert_close(got[a:b], x[a:b].std().expand(b - a))
    rows, real = padded_rows(offsets)
    assert rows[real].tolist() == list(range(9))


def test_projectors_keep_their_precision_under_autocast() -> None:
    for address in ("dskd-v1", "dskd-v2", "dskd-cma"):
        method = create(address)
        here = world(method)
        pair = Pair(*(replace(s, head=s.head.detach().bfloat16(), embedding=s.embedding.bfloat16())
                      for s in (here.pair.student, here.pair.teacher)))  # fmt: skip
        parts = build(method, pair)
        assert {p.dtype for p in parts.parameters()} == {torch.float32}
        batch = here.batch()
        views = [replace(v, hidden=v.hidden.detach().bfloat16(), head=s.head, embedding=s.embedding)
                 for v, s in ((batch.student, pair.student), (batch.teacher, pair.teacher))]  # fmt: skip
        views[0].hidden.requires_grad_(True)
        low = replace(batch, student=views[0], teacher=views[1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = method.loss(low, parts).total
        loss.backward()
        exact = float(method.loss(batch, build(method, here.pair)).total.detach())
        assert float(loss.detach()) == pytest.approx(exact, rel=0.1)
        assert views[0].hidden.grad.dtype == torch.bfloat16


CHUNKED = ("alm", "gold", "gold@uld", "simct")
RATED = ("kl", "dskd-v2", "uld", "mined", "dskd-cma", "dskd-eta", "hidden-mse", "simple-ctkd", *CHUNKED)


def test_rate_zero_is_fine_tuning() -> None:
    for address in RATED:
        method, sft = create(f"{address}:rate=0"), create("sft")
        here = world(method)
        made = gradients(method, build(method, here.pair), here.batch())
        wanted = gradients(sft, None, here.batch())
        torch.testing.assert_close(made.hidden, wanted.hidden)
        torch.testing.assert_close(made.head, wanted.head)


def test_a_batch_that_lacks_something_is_refused() -> None:
    cases = [("kl", "teacher"), ("uld", "teacher"), ("dskd-eta", "pairs"), ("mined", "pairs")]
    cases += [("simple-ctkd", "pairs"), *((address, "pairs") for address in CHUNKED)]
    for address, missing in cases:
        method = create(address)
        here = world(method)
        with pytest.raises(ValueError, match="needs"):
            method.loss(replace(here.batch(), **{missing: None}), build(method, here.pair))


def test_unequal_rows_over_one_vocabulary_are_refused() -> None:
    method = create("dskd-v2")
    here = world(method)
    batch = here.batch()
    with pytest.raises(ValueError, match="positions"):
        method.loss(replace(batch, teacher=here.batch([0]).teacher), build(method, here.pair))


def test_attention_needs_embeddings_as_wide_as_states() -> None:
    method = create("dskd-cma")
    pair = world(method).pair
    narrow = replace(pair.teacher, embedding=pair.teacher.embedding[:, :4])
    with pytest.raises(MethodError, match="4 and 9 wide"):
        method.build(Pair(pair.student, narrow))


def test_unmatched_positions_get_the_label_at_temperature_t() -> None:
    method = create("mined:rate=1")
    here = world(method)
    batch = here.batch()
    none = torch.zeros(0, dtype=torch.int64)
    loss = method.loss(replace(batch, pairs=Pairs(none, none)), build(method, here.pair))
    logits = batch.student.hidden @ batch.student.head.T / 2
    wanted = torch.nn.functional.cross_entropy(logits, batch.student.labels)
    assert float(loss.total.detach()) == pytest.approx(wanted.item())


def test_the_alphabet_of_the_synthetic_pair_is_cut_as_meant() -> None:
    pieces = [STUDENT.surfaces[i] for i in cut(STUDENT, "abcade ab").ids]
    assert pieces == [b"ab", b"c", b"ad", b"e", b" a", b"b", b"<eos>"]
    assert TEACHER.eos != STUDENT.eos


def test_the_reference_switch_reaches_every_method() -> None:
    method = create("dskd-v2")
    here = world(method)
    parts = build(method, here.pair)
    with heads.reference():
        plain = float(method.loss(here.batch(), parts).total.detach())
    assert plain == pytest.approx(float(method.loss(here.batch(), parts).total.detach()), rel=1e-12)


# --- chunks ---------------------------------------------------------------------------------------


def test_chunks_begin_after_one_another_and_with_their_example() -> None:
    # examples of 4, 1, 0 and 5 positions; the last example's end is cut off
    chunks = Chunks.between(torch.tensor([1, 3, 4, 6, 7]), torch.tensor([0, 4, 5, 5, 10]))
    assert chunks.first.tolist() == [0, 2, 4, 5, 7]
    assert chunks.lengths.tolist() == [2, 2, 1, 2, 1]
    assert chunks.of.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, -1, -1]
    assert chunks.followers().tolist() == [1, 3, 6]
    assert chunks.sums(torch.arange(10.0)).tolist() == [1, 5, 4, 11, 7]
    assert chunks.sums(torch.tensor([1.0, 2.0]), torch.tensor([3, 9])).tolist() == [0, 1, 0, 0, 0]


def test_chunks_of_nothing() -> None:
    chunks = Chunks.between(torch.zeros(0, dtype=torch.int64), torch.tensor([0, 3]))
    assert chunks.of.tolist() == [-1, -1, -1]
    assert chunks.sums(torch.ones(3)).shape == (0,)
    assert chunks.followers().shape == (0,)


@pytest.mark.parametrize("address", CHUNKED)
def test_without_a_chunk_there_is_gold_cross_entropy_alone(address: str) -> None:
    method = create(address)
    here = world(method)
    none = torch.zeros(0, dtype=torch.int64)
    batch = replace(here.batch(), pairs=Pairs(none, none))
    made = gradients(method, build(method, here.pair), batch)
    assert made.loss.total.item() == pytest.approx(float(made.loss.terms["ce"]))
    assert bool(made.hidden.any())


def test_over_one_vocabulary_every_token_is_a_chunk() -> None:
    """GOLD is then JSD of the whole distribution; SimCT and simple-ctkd are logit distillation."""
    for address, like in (
        ("gold:beta=0.3", "jsd:beta=0.3:temperature=1"),
        ("simct", "rkl:temperature=1"),
        ("simct/srkl", "srkl:temperature=1"),
        ("simple-ctkd", "kl:temperature=1"),
    ):
        method, plain = create(address), create(like)
        here = world(method, same=True)
        a = gradients(method, build(method, here.pair), here.batch())
        b = gradients(plain, None, here.batch())
        torch.testing.assert_close(a.loss.total, b.loss.total, rtol=1e-12, atol=0)
        torch.testing.assert_close(a.hidden, b.hidden)
        torch.testing.assert_close(a.head, b.head)


def test_binarised_divergences_by_hand() -> None:
    p, q = 0.5, 0.25
    a, b = (-torch.tensor([x], dtype=torch.float64).log() for x in (p, q))
    wanted = {
        "alm:tau=1": p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)),
        "alm:tau=1:f=rkl": q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)),
        "alm:tau=1:f=tvd": 2 * (p - q),
    }
    for address, value in wanted.items():
        assert create(address).binarised(a, b).item() == pytest.approx(value, rel=1e-12)


def test_alm_grows_to_its_limit() -> None:
    """tau f(P^(1/tau), ..) -> b - a + a log(a / b) for kl, and 2 |a - b| for tvd."""
    a, b = torch.tensor([0.3, 2.0, 30.0]).double(), torch.tensor([1.2, 0.4, 31.0]).double()
    limit = b - a + a * (a / b).log()
    torch.testing.assert_close(create("alm:tau=1e7").binarised(a, b), limit, rtol=1e-5, atol=1e-6)
    found = create("alm:tau=1e7:f=tvd").binarised(a, b)
    torch.testing.assert_close(found, 2 * (a - b).abs(), rtol=1e-5, atol=1e-6)
    sure = torch.zeros(3).double()  # a chunk that is certain
    assert bool(create("alm").binarised(sure, b).isfinite().all())
    assert not bool(create("alm").binarised(sure, sure).any())


@pytest.mark.parametrize("address", ["gold", "simple-ctkd", "simct"])
def test_a_token_without_a_partner_is_never_a_shared_one(address: str) -> None:
    method = create(address)
    here = world(method)
    parts = build(method, here.pair)
    pairs = dict(zip(parts.known.tolist(), parts.known_t.tolist(), strict=True))
    assert pairs[STUDENT.eos] == TEACHER.eos
    assert TEACHER.ids[b"zz"] not in pairs.values()
    assert all(STUDENT.surfaces[i] == TEACHER.surfaces[j] for i, j in pairs.items() if i != STUDENT.eos)
    if address == "gold":
        return
    batch = here.batch()
    loud = batch.teacher.head.clone()
    loud[TEACHER.ids[b"zz"]] *= 30  # whatever the teacher gives to it
    again = replace(batch, teacher=replace(batch.teacher, head=loud))
    assert torch.equal(method.loss(batch, parts).total, method.loss(again, parts).total)


def test_a_chunk_s_own_logit_counts_only_where_it_is_no_single_token() -> None:
    method = create("simct:rate=1")
    here = world(method)
    parts, batch = build(method, here.pair), here.batch()
    ours, theirs = both_chunks(batch, "simct")
    single = (ours.lengths == 1) & (theirs.lengths == 1)
    exact = Pairs(ours.first[single], theirs.first[single])
    alone = method.loss(replace(batch, pairs=Pairs(ours.last, theirs.last)), parts).terms["kd"]
    shared = create("simple-ctkd/rkl:rate=1").compare(batch, parts, exact).terms["kd"]
    assert 0 < int(single.sum()) < len(single)
    assert 0 < float(shared) < float(alone)


def test_merged_probabilities_multiply_along_a_chunk() -> None:
    """A chunk that the student finds twice as unlikely after its first token has half of everything."""
    known = torch.arange(3)
    by = MergedDistance((known, known), (known[:0], known[:0]), 0.5, 1.0)
    q = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    half = torch.tensor([[0.5]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    value = by(torch.cat([q, half], -1).log(), torch.cat([q, one], -1).log()).item()
    assert value == pytest.approx(0.5 * np.log(1 / 0.75) + 0.25 * np.log(0.5 / 0.75))


# --- transport ------------------------------------------------------------------------------------


def test_sinkhorn_by_hand() -> None:
    """One point to one point is their distance; two far pairs are matched; padding is nothing."""
    s = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).double()
    t = torch.tensor([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]).double()
    found = sinkhorn(s, t, torch.tensor([0, 1, 3]), torch.tensor([0, 1, 3]), 1e-3, 20)
    # example 1: |1 - 0.5| + |0 - 0.5| = 1; example 2: (0, 1) twice against (0, 1) and (1, 0), half and half
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0]).double())
    alone = sinkhorn(s[:1], t[:1], torch.tensor([0, 1]), torch.tensor([0, 1]), 1e-3, 20)
    torch.testing.assert_close(alone, found[:1])


def test_sinkhorn_has_the_marginals_of_its_sides() -> None:
    """With many rounds it is the entropic optimum: no small move of mass within the marginals is cheaper."""
    torch.manual_seed(0)
    s, t, epsilon = torch.rand(5, 3).double(), torch.rand(4, 3).double(), 0.2
    found = sinkhorn(s, t, torch.tensor([0, 5]), torch.tensor([0, 4]), epsilon, 500).item()
    cost = torch.cdist(s, t, p=1.0)
    scale = torch.ones(4).double() / 4
    for _ in range(5000):  # the textbook iteration on scalings
        rows = (1 / 5) / ((-cost / epsilon).exp() @ scale)
        scale = (1 / 4) / ((-cost / epsilon).exp().T @ rows)
    plan = rows[:, None] * (-cost / epsilon).exp() * scale
    assert found == pytest.approx((plan * cost).sum().item(), rel=1e-9)
    torch.testing.assert_close(plan.sum(1), torch.full((5,), 0.2).double())
