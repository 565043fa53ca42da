import httpx
import pytest
from flwr.superlink.grid import HttpGrid

from fedmerge.engine.executors import InProcess
from fedmerge.engine.grid import LocalGrid
from fedmerge.server_app.link import bound_retries


def test_a_server_that_is_gone_for_good_ends_the_wait():
    grid = HttpGrid("127.0.0.1:9", insecure=True, token="token")  # nobody listens on the discard port
    bound_retries(grid, 0.5)
    with pytest.raises(httpx.ConnectError):
        grid.get_node_ids()


def test_a_grid_in_this_process_has_no_link():
    bound_retries(LocalGrid(InProcess(lambda message: message), [7], run_id=1))
