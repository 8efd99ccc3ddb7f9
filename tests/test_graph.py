"""Shared graph work: adjacencies, propagation, dropout, exact neighbors, against dense matrices written by hand.

Shapes: U users, I items, N = U + I nodes, E edges, D embedding, k neighbors.
"""

import importlib.util
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmrec_lmm import graph
from mmrec_lmm.errors import PluginError
from mmrec_lmm.graph import (
    BipartiteGraph,
    Neighbors,
    Normalization,
    Side,
    SparseMatrix,
    cosines,
    nearest_neighbors,
    neighbor_sum,
    propagate,
    propagate_mean,
    propagate_mean_to,
    propagate_to,
    scatter,
    symmetric_weights,
)
from mmrec_lmm.types import Interactions, TrainingData

NORMALISATIONS = get_args(Normalization)

# Users 0 .. 3 and items 0 .. 4; user 3 and item 4 have no row, user 1 has one, and (0, 2) stands twice
PAIRS = [(2, 1), (0, 2), (0, 0), (1, 2), (2, 0), (0, 2), (2, 3)]
DATA = TrainingData(4, 5, Interactions(*np.array(PAIRS).T.copy()))
A = torch.zeros(9, 9)
for user, item in PAIRS:
    A[user, 4 + item] = A[4 + item, user] = 1.0
DEGREES = A.sum(1)


def dense(normalization: Normalization, a: Tensor, epsilon: float = 0.0) -> Tensor:
    """The normalized form of an adjacency (N, N), as its formula says; rows without edges stay zero."""
    degrees = a.sum(1) + epsilon
    inverse = torch.where(a.sum(1) > 0, 1 / degrees, 0.0)
    loops = torch.eye(len(a))
    return {
        "symmetric": inverse.sqrt().diag() @ a @ inverse.sqrt().diag(),
        "random_walk": inverse.diag() @ a,
        "random_walk_with_self": (a + loops) / (degrees + 1).unsqueeze(1),
        "random_walk_plus_self": inverse.diag() @ a + loops,
        "plain": a,
    }[normalization]


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
@pytest.mark.parametrize("normalization", NORMALISATIONS)
def test_every_adjacency_and_its_transpose_is_the_dense_formula(normalization: Normalization, epsilon: float) -> None:
    matrix = BipartiteGraph(DATA).adjacency(normalization, epsilon=epsilon)
    expected = dense(normalization, A, epsilon)
    assert matrix.shape == (9, 9)
    torch.testing.assert_close(matrix.csr().to_dense(), expected)
    torch.testing.assert_close(matrix.csr(transposed=True).to_dense(), expected.T)


def test_a_symmetric_adjacency_stores_one_form_and_no_other_stores_a_second_pattern() -> None:
    own = BipartiteGraph(DATA)
    assert own.adjacency("symmetric").t_values is None
    walk = own.adjacency("random_walk")
    assert walk.t_col is not None
    assert walk.t_col.data_ptr() == walk.col.data_ptr()


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("normalization", NORMALISATIONS)
def test_the_mean_of_layers_and_its_gradient_are_those_of_dense_products(
    normalization: Normalization, layers: int
) -> None:
    matrix, expected = BipartiteGraph(DATA).adjacency(normalization), dense(normalization, A)
    x, weights = torch.randn(9, 6, requires_grad=True), torch.randn(9, 6)
    powers = [torch.linalg.matrix_power(expected, layer) for layer in range(layers + 1)]
    mean = torch.stack(powers).mean(0)
    ours = propagate_mean(matrix, x, layers)
    torch.testing.assert_close(ours, mean @ x)
    torch.testing.assert_close(torch.autograd.grad((ours * weights).sum(), x)[0], mean.T @ weights)


@pytest.mark.parametrize("side", ["users", "items"])
@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("normalization", NORMALISATIONS)
def test_one_side_alone_is_that_side_of_the_whole_in_value_and_gradient(
    normalization: Normalization, layers: int, side: Side
) -> None:
    matrix, x, weights = BipartiteGraph(DATA).adjacency(normalization), torch.randn(9, 6), torch.randn(9, 6)
    part = slice(0, 4) if side == "users" else slice(4, 9)
    whole = x.clone().requires_grad_()
    expected = propagate_mean(matrix, whole, layers)[part]
    users, items = (rows.clone().requires_grad_() for rows in x.split([4, 5]))
    ours = propagate_mean_to(side, matrix, users, items, layers)
    torch.testing.assert_close(ours, expected)
    theirs = torch.autograd.grad((expected * weights[part]).sum(), whole)[0]
    mine = torch.autograd.grad((ours * weights[part]).sum(), (users, items), allow_unused=True)
    rows = [torch.zeros_like(each) if own is None else own for own, each in zip(mine, (users, items), strict=True)]
    torch.testing.assert_close(torch.cat(rows), theirs)


@pytest.mark.parametrize("side", ["users", "items"])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("normalization", ["symmetric", "random_walk", "random_walk_with_self"])
def test_a_table_that_is_not_given_counts_as_zeros(normalization: Normalization, layers: int, side: Side) -> None:
    matrix, x = BipartiteGraph(DATA).adjacency(normalization), torch.randn(9, 6)
    users, items = (rows.clone().requires_grad_() for rows in x.split([4, 5]))
    from_users = propagate_mean_to(side, matrix, users, None, layers)
    from_items = propagate_mean_to(side, matrix, None, items, layers)
    both = propagate_mean_to(side, matrix, users, items, layers)
    torch.testing.assert_close(from_users + from_items, both)
    apart = torch.autograd.grad((from_users + from_items).square().sum(), (users, items))
    together = torch.autograd.grad(both.square().sum(), (users, items), allow_unused=True)
    for mine, other in zip(apart, together, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if other is None else other)


@pytest.mark.parametrize("normalization", ["symmetric", "random_walk"])
def test_one_layer_to_one_side_needs_the_other_side_alone(normalization: Normalization) -> None:
    matrix = BipartiteGraph(DATA).adjacency(normalization)
    block = dense(normalization, A)[:4, 4:]  # (U, I)
    x, weights = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3)
    to_users = propagate_to("users", matrix, x)
    torch.testing.assert_close(to_users, block @ x)
    torch.testing.assert_close(torch.autograd.grad((to_users * weights).sum(), x)[0], block.T @ weights)
    torch.testing.assert_close(propagate_to("items", matrix, weights), dense(normalization, A)[4:, :4] @ weights)


def test_views_of_a_graph_share_the_patterns_of_their_blocks_and_a_moved_matrix_has_its_own() -> None:
    own = BipartiteGraph(DATA)
    first, second = (own.adjacency(kept=own.drop_edges(0.5)) for _ in range(2))
    for side in ("users", "items"):
        blocks = [matrix.rows_of(side) for matrix in (first, first, second)]
        assert len({block.col_indices().data_ptr() for block in blocks}) == 1
        assert len({block.crow_indices().data_ptr() for block in blocks}) == 1
        assert not torch.equal(blocks[0].values(), blocks[2].values())
    assert second.to("meta").rows_of("users").col_indices().device.type == "meta"
    assert first.rows_of("users").col_indices().device.type == "cpu"


def test_results_outlive_the_next_propagation() -> None:
    matrix, x = BipartiteGraph(DATA).adjacency(), torch.randn(9, 6)
    first = propagate_mean(matrix, x, 3)
    kept = first.clone()
    propagate_mean(matrix, x + 1, 3)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("layers", [1, 3])
def test_sources_side_by_side_are_propagated_as_each_alone_from_any_memory_layout(layers: int) -> None:
    matrix = BipartiteGraph(DATA).adjacency("random_walk")
    sources = [torch.randn(6, 9).T for _ in range(3)]  # not row by row in memory
    alone = torch.cat([propagate_mean(matrix, source, layers) for source in sources], dim=1)
    torch.testing.assert_close(propagate_mean(matrix, torch.cat(sources, dim=1), layers), alone)
    torch.testing.assert_close(propagate(matrix, sources[0]), dense("random_walk", A) @ sources[0])


@pytest.mark.parametrize("normalization", ["symmetric", "random_walk"])
def test_gradients_pass_a_numerical_check(normalization: Normalization) -> None:
    matrix = BipartiteGraph(DATA).adjacency(normalization).double()
    x = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: propagate(matrix, x), x)
    assert torch.autograd.gradcheck(lambda x: propagate_mean(matrix, x, 2), x)


def test_a_rectangular_matrix_from_entries_adds_up_what_stands_twice() -> None:
    rows, cols = torch.tensor([1, 0, 1, 1]), torch.tensor([2, 1, 2, 0])
    matrix = SparseMatrix.from_entries(rows, cols, torch.tensor([1.0, 2.0, 3.0, 4.0]), (2, 3))
    expected = torch.tensor([[0.0, 2.0, 0.0], [4.0, 0.0, 4.0]])
    x = torch.randn(3, 2, requires_grad=True)
    ours = propagate(matrix, x)
    torch.testing.assert_close(ours, expected @ x)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), x)[0], expected.T @ torch.ones(2, 2))


def test_graphs_move_with_their_model_and_are_no_part_of_its_saved_state() -> None:
    model = torch.nn.Module()
    model.graph, model.matrix = BipartiteGraph(DATA), BipartiteGraph(DATA).adjacency("random_walk")
    assert not model.state_dict()
    model.to("meta")
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}


def test_on_mps_propagation_runs_on_the_cpu_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graph._notice_mps.cache_clear()
    with caplog.at_level(logging.WARNING):
        graph._notice_mps()
        graph._notice_mps()
    assert [record.message for record in caplog.records] == [
        "torch has no sparse product on MPS: graph propagation runs on the CPU"
    ]


# Dropout


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3, 0.5, 0.9])
def test_edge_dropout_keeps_an_exact_number_of_edges_and_renormalizes_the_rest(rate: float) -> None:
    own = BipartiteGraph(DATA)
    assert len(own) == 6  # distinct pairs
    torch.manual_seed(0)
    kept = own.drop_edges(rate)
    assert int(kept.sum()) == int(6 * (1 - rate))
    rest = torch.zeros_like(A)
    rest[own.users[kept], 4 + own.items[kept]] = 1.0
    rest = rest + rest.T
    for normalization in NORMALISATIONS:
        view = own.adjacency(normalization, kept=kept)
        torch.testing.assert_close(view.csr().to_dense(), dense(normalization, rest))
        assert view.values.isfinite().all()  # though some users and items have lost every edge


def test_every_edge_is_dropped_equally_often() -> None:
    own = BipartiteGraph(DATA)
    torch.manual_seed(0)
    counts = torch.stack([own.drop_edges(0.5) for _ in range(2000)]).sum(0)
    assert ((counts - 1000).abs() < 4 * np.sqrt(2000 * 0.25)).all(), counts


def test_dropping_nodes_takes_exact_numbers_of_users_and_items_with_all_their_edges() -> None:
    users = np.repeat(np.arange(10), 8)
    own = BipartiteGraph(TrainingData(10, 8, Interactions(users, np.tile(np.arange(8), 10))))  # complete
    torch.manual_seed(0)
    kept = own.drop_nodes(0.3).view(10, 8)
    assert int((~kept.any(dim=1)).sum()) == 3  # users
    assert int((~kept.any(dim=0)).sum()) == 2  # items: floor(2.4)
    assert int(kept.sum()) == 7 * 6


def test_a_view_is_a_new_set_of_values_on_the_same_pattern() -> None:
    own = BipartiteGraph(DATA)
    view = own.adjacency(kept=own.drop_edges(0.5))
    assert view.col.data_ptr() == own.col.data_ptr()


def test_torchs_seed_decides_what_is_dropped() -> None:
    own = BipartiteGraph(DATA)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append([own.drop_edges(0.5), own.drop_nodes(0.5)])
    assert all(torch.equal(*pair) for pair in zip(drawn[0], drawn[1], strict=True))
    assert not all(torch.equal(*pair) for pair in zip(drawn[0], drawn[2], strict=True))


# Nearest neighbors


def neighbor_sets(x: Tensor, k: int, **options: object) -> list[list[int]]:
    found = nearest_neighbors(x, k, **options)
    return [row[real].tolist() for row, real in zip(found.items, found.real, strict=True)]


@given(
    n=st.integers(1, 30),
    k=st.integers(1, 35),
    block=st.integers(1, 40),
    seed=st.integers(0, 99),
    levels=st.booleans(),
)
def test_neighbors_are_those_of_a_full_sort_with_ties_by_lower_id_in_blocks_of_any_size(
    n: int, k: int, block: int, seed: int, levels: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    if levels:  # many exact ties: a row is one of three axes, or zero
        x = torch.eye(3)[torch.randint(0, 3, (n,), generator=generator)] * torch.randint(
            0, 2, (n, 1), generator=generator
        )
    else:
        x = torch.randn(n, 4, generator=generator)
    present = torch.rand(n, generator=generator) < 0.8
    usable = [row for row in range(n) if present[row] and x[row].any()]
    similar = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(x, dim=1).T
    expected = []
    for row in range(n):
        others = sorted((item for item in usable if item != row), key=lambda item: (-similar[row, item].item(), item))
        expected.append(sorted([row, *others[: k - 1]]) if row in usable else [row])
    assert neighbor_sets(x, k, present=present, block_rows=block) == expected


def test_cosines_are_given_with_the_neighbors_and_again_with_gradient() -> None:
    x = torch.randn(12, 5, requires_grad=True)
    near = nearest_neighbors(x, 4, present=torch.arange(12) != 3)
    again = cosines(x, near)
    torch.testing.assert_close(again, near.cosines)
    unit = torch.nn.functional.normalize(x, dim=1)
    similar = (unit @ unit.T).gather(1, near.items) * near.real
    theirs, ours = (torch.autograd.grad(values.square().sum(), x)[0] for values in (similar, again))
    ours[3] = theirs[3] = 0
    torch.testing.assert_close(ours, theirs)
    assert not torch.autograd.grad(cosines(x, near)[3].sum(), x)[0].any()  # has only itself: a constant


@pytest.mark.parametrize("k", [1, 3, 50])
def test_zero_rows_and_absent_items_have_only_themselves_and_are_nobodys_neighbor(k: int) -> None:
    x = torch.randn(6, 3)
    x[2] = 0
    found = neighbor_sets(x, k, present=torch.arange(6) != 4)
    assert found[2] == [2]
    assert found[4] == [4]
    assert not any({2, 4} & set(found[item]) for item in (0, 1, 3, 5))
    near = nearest_neighbors(x, k, present=torch.arange(6) != 4)
    assert near.cosines.isfinite().all()
    assert near.cosines[[2, 4]].sum(1).tolist() == [1.0, 1.0]


def test_an_item_stays_its_own_neighbor_among_more_twins_than_there_are_places() -> None:
    assert neighbor_sets(torch.ones(6, 2), 3) == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 5]]


@given(n=st.integers(1, 30), k=st.integers(1, 35), block=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_rule_topk_leaves_equal_cosines_to_torch_over_the_dense_rows_in_blocks_of_any_size(
    n: int, k: int, block: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.eye(3)[torch.randint(0, 3, (n,), generator=generator)]  # cosines of exactly 0 and 1
    expected = (x @ x.T).topk(min(k, n), dim=1).indices.sort(dim=1).values
    assert neighbor_sets(x, k, ties="topk", block_rows=block) == expected.tolist()


def test_under_the_rule_topk_equal_items_share_their_neighbors_and_absent_items_keep_only_themselves() -> None:
    found = neighbor_sets(torch.ones(9, 2), 3, ties="topk", present=torch.arange(9) != 4)
    assert found[4] == [4]
    assert len({tuple(row) for item, row in enumerate(found) if item != 4}) == 1
    assert not any(4 in row for item, row in enumerate(found) if item != 4)


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize(("n", "block"), [(700, 64), (700, 1000), (704, 100)])
def test_among_many_items_too_the_neighbors_are_those_of_a_full_sort(n: int, block: int, levels: bool) -> None:
    generator = torch.Generator().manual_seed(n + block)
    if levels:  # of each item dozens of twins, and a few items of which there is one
        x = torch.eye(20)[torch.randint(0, 16, (n,), generator=generator)]
        x[:4] = torch.eye(20)[16:]
    else:
        x = torch.randn(n, 20, generator=generator, dtype=torch.float64)
    similar = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(x, dim=1).T
    similar.fill_diagonal_(2.0)
    expected = similar.sort(dim=1, descending=True, stable=True).indices[:, :10].sort(dim=1).values
    assert neighbor_sets(x, 10, block_rows=block) == expected.tolist()


def test_a_gpu_gets_products_of_many_rows_and_a_cpu_those_that_fit_its_cache() -> None:
    few, many = torch.empty(7_050, 4), torch.empty(10_000_000, 4, device="meta")
    assert graph._block_rows(few) == graph._block_rows(torch.empty(10_000, 4)) == 256
    assert graph._block_rows(few.to("meta")) == (256 << 20) // (4 * 7_050)
    assert graph._block_rows(many) == 256


# Approximate neighbors


@pytest.fixture
def faiss() -> None:
    pytest.importorskip("faiss", reason="approximate neighbors need faiss: pip install 'mmrec-lmm[ann]'")


def clusters(n: int, width: int = 8, size: int = 20) -> Tensor:
    """n items of n / size kinds, each item somewhat different from its kind."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(n // size, width, generator=generator)
    return kinds[torch.arange(n) % len(kinds)] + 0.3 * torch.randn(n, width, generator=generator)


def found_share(near: Neighbors, exact: Neighbors) -> float:
    """The share of exact neighbors besides an item itself that are found, of all items."""
    own = torch.arange(len(exact.items)).unsqueeze(1)
    others = exact.items != own
    found = (exact.items.unsqueeze(2) == near.items.unsqueeze(1)).any(dim=2) & others
    return (found.sum() / others.sum()).item()


@pytest.mark.usefixtures("faiss")
def test_a_search_of_all_clusters_finds_the_exact_neighbors() -> None:
    x = clusters(900)
    exact, near = nearest_neighbors(x, 6), nearest_neighbors(x, 6, probes=1000)
    assert torch.equal(near.items, exact.items)
    torch.testing.assert_close(near.cosines, exact.cosines)
    assert near.real.all()
    assert (exact.recall, near.recall) == (1.0, 1.0)


@pytest.mark.usefixtures("faiss")
def test_a_search_of_some_clusters_finds_a_share_that_it_reports_and_more_of_them_find_more() -> None:
    x = torch.randn(900, 8, generator=torch.Generator().manual_seed(0))  # fewer than the sample: each is checked
    exact = nearest_neighbors(x, 6)
    one, four = (nearest_neighbors(x, 6, probes=probes) for probes in (1, 4))
    assert one.recall == pytest.approx(found_share(one, exact))
    assert four.recall == pytest.approx(found_share(four, exact))
    assert 0.2 < one.recall < four.recall < 1.0


@pytest.mark.usefixtures("faiss")
@pytest.mark.parametrize("threads", [1, 2])
def test_approximate_neighbors_are_the_same_in_another_process(threads: int) -> None:
    script = f"""
        import torch
        from mmrec_lmm.disk.hashing import hash_bytes
        from mmrec_lmm.graph import nearest_neighbors

        torch.set_num_threads({threads})
        x = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
        near = nearest_neighbors(x, 10, probes=2)
        print(hash_bytes(near.items.numpy()), hash_bytes(near.cosines.numpy()), near.recall < 1)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second
    assert first.endswith("True\n")


@pytest.mark.usefixtures("faiss")
def test_approximate_neighbors_leave_torchs_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    nearest_neighbors(clusters(100), 3, probes=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.usefixtures("faiss")
def test_approximate_neighbors_too_begin_with_the_item_itself_and_leave_out_absent_ones() -> None:
    x, present = clusters(300), torch.arange(300) % 7 != 0
    x[5] = 0
    near = nearest_neighbors(x, 4, present=present, probes=2)
    alone = ~present | (torch.arange(300) == 5)
    assert (near.items == torch.arange(300).unsqueeze(1)).any(dim=1).all()
    assert near.real[~alone].all()
    assert near.real[alone].sum(dim=1).tolist() == [1] * int(alone.sum())
    assert not alone[near.items[~alone]].any()
    assert neighbor_sets(torch.ones(6, 2), 3, probes=1)[4:] == [[0, 1, 4], [0, 1, 5]]


@pytest.mark.usefixtures("faiss")
def test_where_the_clusters_searched_have_too_few_items_the_other_places_are_empty() -> None:
    x = torch.eye(4).repeat_interleave(torch.tensor([70, 70, 70, 2]), dim=0)
    near = nearest_neighbors(x, 60, probes=1)
    assert near.real.sum(dim=1).min() < 60 == near.real.sum(dim=1).max()
    assert not near.cosines[~near.real].any()
    assert torch.equal(near.items[~near.real], torch.arange(212).unsqueeze(1).expand(-1, 60)[~near.real])
    assert near.recall < 1


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    graph._faiss.cache_clear()
    with pytest.raises(PluginError, match=r"expected faiss, got .*; try pip install 'mmrec-lmm\[ann\]'"):
        nearest_neighbors(torch.eye(3), 2, probes=1)
    graph._faiss.cache_clear()


def test_a_graph_whose_rows_sum_to_nothing_vanishes_instead_of_becoming_nan() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.1]], requires_grad=True)
    near = nearest_neighbors(x, 3)
    values = cosines(x, near)
    weights = symmetric_weights(values, values.sum(1), near)
    weights.sum().backward()
    assert not weights[0].any()  # 1 - 1 - 0.995 is negative
    assert weights.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_nan_in_learned_features_reaches_the_values_and_breaks_nothing_before() -> None:
    x = torch.randn(8, 3)
    x[5] = torch.nan
    near = nearest_neighbors(x, 3)
    assert cosines(x, near)[5].isnan().any()
    assert cosines(x, near)[0].isfinite().all()


def test_the_sum_over_neighbors_is_the_dense_product_with_gradient_for_weights_and_rows() -> None:
    items, weights = torch.tensor([[0, 2], [1, 1], [0, 1]]), torch.randn(3, 2, requires_grad=True)
    x = torch.randn(3, 4, requires_grad=True)
    matrix = torch.zeros(3, 3).index_put(
        (torch.arange(3).repeat_interleave(2), items.flatten()), weights.flatten(), True
    )
    loss = torch.randn(3, 4)
    theirs = torch.autograd.grad((matrix @ x * loss).sum(), (weights, x))
    ours = neighbor_sum(items, weights, x)
    torch.testing.assert_close(ours, matrix @ x)
    torch.testing.assert_close(torch.autograd.grad((ours * loss).sum(), (weights, x)), theirs)


@pytest.mark.slow
def test_fifty_thousand_items_need_no_memory_of_items_times_items() -> None:
    """LATTICE trains and ranks with 3 GB of address space; dense, one graph alone has 10 GB."""
    pytest.importorskip("resource")
    script = """
        import resource
        import numpy as np, torch
        from mmrec_lmm.plugin.item_features import ItemFeatures
        from mmrec_lmm.plugin.registry import load_registry
        from mmrec_lmm.types import Batch, Interactions, TrainingData

        torch.set_num_threads(1)
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # libraries map gigabytes
        resource.setrlimit(resource.RLIMIT_AS, (now + (3 << 30), now + (3 << 30)))
        n = 50_000
        data = TrainingData(n, n, Interactions(np.arange(n), np.arange(n)[::-1].copy()))
        tables = {"image": torch.randn(n, 16), "text": torch.randn(n, 16)}
        features = ItemFeatures(tables, {name: torch.ones(n, dtype=torch.bool) for name in tables})
        models = load_registry().models
        model = models.load("LATTICE", "cls")(data, features, models.load("LATTICE", "config")(feat_embed_dim=16))
        batch = Batch(torch.arange(64), torch.arange(64), torch.arange(64) + 1)
        for _ in range(2):
            sum(model.training_loss(batch).values()).backward()
        with torch.no_grad():
            assert model.eval().scorer()(torch.arange(8)).shape == (8, n)
        try:
            torch.empty(n, n)
        except RuntimeError:
            print("the limit holds")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "the limit holds", done.stderr[-2000:]


# Scatter


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], None]]:
    """Called with a module, or an error that its import raises, it stands in for the torch_scatter that is here."""

    def install(found: object) -> None:
        def import_module(name: str, package: str | None = None) -> object:
            if name != "torch_scatter":
                return real(name, package)
            if isinstance(found, Exception):
                raise found
            return found

        real = importlib.import_module
        monkeypatch.setattr(importlib, "import_module", import_module)
        graph._torch_scatter.cache_clear()

    yield install
    graph._torch_scatter.cache_clear()


@pytest.mark.parametrize("shape", [(20,), (20, 3), (20, 3, 2)])
@pytest.mark.parametrize("package", ["torch_scatter", "none"])
def test_scattering_sums_rows_by_index_and_leaves_zero_where_there_are_none(
    shape: tuple[int, ...], package: str, installed: Callable[[object], None]
) -> None:
    if package == "none":
        installed(ImportError("no torch_scatter"))
    elif importlib.util.find_spec("torch_scatter") is None:
        pytest.skip("torch_scatter isn't installed")
    values, index = torch.randn(shape), torch.randint(0, 6, (20,))
    by_loop = torch.stack([values[index == row].sum(0) for row in range(8)])
    torch.testing.assert_close(scatter(values, index, 8), by_loop)


def test_scattering_nothing_gives_zeros() -> None:
    assert not scatter(torch.empty(0, 2), torch.empty(0, dtype=torch.long), 3).any()


def test_torch_scatter_sums_where_it_is_installed(installed: Callable[[object], None]) -> None:
    def scatter_sum(values: Tensor, index: Tensor, dim: int, dim_size: int) -> Tensor:
        return values.new_full((dim_size, *values.shape[1:]), 7.0)

    installed(SimpleNamespace(scatter_sum=scatter_sum))
    assert scatter(torch.ones(2), torch.tensor([0, 1]), 3).tolist() == [7.0, 7.0, 7.0]


def test_a_torch_scatter_that_was_built_for_another_torch_is_left_alone_and_named(
    installed: Callable[[object], None], caplog: pytest.LogCaptureFixture
) -> None:
    installed(OSError("undefined symbol: _ZN5torch\nmore"))
    assert scatter(torch.ones(2), torch.tensor([0, 0]), 2).tolist() == [2.0, 0.0]
    assert "torch_scatter can't be loaded (undefined symbol: _ZN5torch)" in caplog.text
