"""Who is which rank."""

from shoal.train._run.ranks import assign


def test_neighbours_on_a_node_are_neighbours_in_rank():
    ranks = assign([("x", []), ("y", []), ("x", []), ("y", []), ("z", [])])
    assert [rank.index for rank in ranks] == [0, 2, 1, 3, 4]
    assert [rank.world_rank for rank in ranks] == [0, 1, 2, 3, 4]
    assert [rank.local_rank for rank in ranks] == [0, 1, 0, 1, 0]
    assert [rank.node_rank for rank in ranks] == [0, 0, 1, 1, 2]
    assert [rank.local_world_size for rank in ranks] == [2, 2, 2, 2, 1]


def test_ranks_follow_the_numbers_of_their_gpus():
    assert [rank.index for rank in assign([("x", ["10"]), ("x", ["9"]), ("x", ["0", "1"])])] == [2, 1, 0]
