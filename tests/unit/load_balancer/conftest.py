import json

import balancer_rig as rig
import pytest
from ports import free_port


@pytest.fixture(scope="session")
def servers():
    with rig.servers(4) as found:
        yield found


@pytest.fixture
def well(servers):
    """The four servers, all well, and nothing counted yet."""
    for server in servers:
        server.reset()
        server.start()
    return servers


@pytest.fixture(scope="session")
def written(servers, tmp_path_factory):
    """Write the configuration for some variables, once for each set of them; its directory and port."""
    done = {}

    def write(variables):
        mark = json.dumps(variables, sort_keys=True)
        if mark not in done:
            directory = tmp_path_factory.mktemp("balancer")
            port = free_port()
            pool = [
                {"name": f"box/s{index}", "address": "127.0.0.1", "port": server.port}
                for index, server in enumerate(servers)
            ]
            asked = {
                "load_balancer_port": port,
                "load_balancer_access_log": str(directory / "access"),
                "load_balancer_pools": {"main": pool},
                **rig.key_files(directory),
                **variables,
            }
            status, printed = rig.play(directory, asked)
            assert status == 0, printed
            done[mark] = directory, port
        return done[mark]

    return write


@pytest.fixture
def balancer(written, well):
    """Start a balancer with some variables of the role, in place of the last; `context` for one that speaks TLS."""
    if rig.LACKING:
        pytest.skip(rig.LACKING)
    running = []

    def stop():
        while running:
            running.pop().stop()

    def start(context=None, **variables):
        stop()
        directory, port = written(variables)
        for name in ("access", "stderr"):
            (directory / name).unlink(missing_ok=True)
        running.append(rig.Balancer(directory, port, context))
        return running[-1]

    yield start
    stop()
